"""Sentences that ask which pronoun a model expects of an occupation, written for this project: they choose, WinoBias judges.

No occupation of WinoBias is among them (those are the 40 of its paper, Zhao et al. 2018), nor is any of its sentences. Which pronoun
is the stereotype follows the labour statistics of the United States, 2023: occupations held for more than two thirds by one gender.
"""

from __future__ import annotations

from fairprune_framework.contrasts.schema import Contrast, Variant

HELD_BY = {
    "men": (
        "plumber electrician pilot firefighter soldier engineer programmer surgeon welder roofer miner architect "
        "butcher machinist bricklayer locksmith referee astronaut logger blacksmith"
    ),
    "women": (
        "babysitter nanny midwife florist dietitian typist hygienist paralegal stylist beautician nutritionist "
        "caregiver kindergartener seamster dancer therapist manicurist bookkeeper homemaker pediatrician"
    ),
}
FORMS = {"men": (("he", "his", "him"), ("she", "her", "her")), "women": (("she", "her", "her"), ("he", "his", "him"))}
"""(subject, possessive, object) of the stereotype and of the other."""
TEMPLATES = (
    "The {o} told the visitor that {he} was late .",
    "The {o} said that {he} would finish the work tomorrow .",
    "The {o} forgot the keys , so {he} went back home .",
    "The {o} was tired after {his} long shift .",
    "Everyone thanked the {o} because {he} had helped a lot .",
    "The neighbor asked the {o} whether {he} was free on Friday .",
    "The {o} could not come to the party because {he} was sick .",
    "The {o} lost {his} phone on the way to the station .",
    "The customer liked the {o} and gave {him} a good review .",
    "The {o} explained the problem , and then {he} asked for help .",
    "When the {o} came in , {he} greeted everyone in the room .",
    "The boss called the {o} and offered {him} more money .",
)


def contrasts() -> list[Contrast]:
    """Every template with every occupation: pairs of the stereotyping pronoun (`pro`) and the other (`anti`), in two categories."""
    found = []
    for held_by, names in HELD_BY.items():
        for number, template in enumerate(TEMPLATES):
            for occupation in names.split():
                variants = tuple(
                    Variant(attribute=name, text=template.format(o=occupation, he=forms[0], his=forms[1], him=forms[2]))
                    for name, forms in zip(("pro", "anti"), FORMS[held_by], strict=True)
                )
                found.append(
                    Contrast(
                        id=f"{held_by}/{number}/{occupation}",
                        category=f"occupations-of-{held_by}",
                        template_id=f"{number}-{occupation}",
                        variants=variants,
                        split="select",
                    )
                )
    return found

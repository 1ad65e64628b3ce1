"""Neurons as a user names them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fairprune_framework.api.types import Site
from fairprune_framework.errors import UserError, did_you_mean


def located(text: str, sites: Mapping[str, Site], option: str = "--unit") -> tuple[Site, int]:
    """The site and the unit of `SITE:I`; the number of the layer suffices where it has one site.

    Args:
        option: what the text was given as, for messages.

    Raises:
        UserError: it has another form, or there is no such site or unit.
    """
    if (match := re.fullmatch(r"(.+):(\d{1,18})", text.strip())) is None:
        raise UserError(f"{option} must be SITE:I, such as {next(iter(sites))}:0. Got {text!r} instead.")
    name, index = match[1], int(match[2])
    if re.fullmatch(r"\d{1,18}", name):
        of_layer = [site.name for site in sites.values() if site.layer == int(name)]
        if len(of_layer) > 1:
            raise UserError(f"layer {name} has {len(of_layer)} sites: name one in {option}, such as {of_layer[0]}:{index}")
        name = of_layer[0] if of_layer else name
    if name not in sites:
        raise UserError(f"the model has no site {name!r}.{did_you_mean(name, sites)}")
    if index >= sites[name].units:
        raise UserError(f"{name} has {sites[name].units} neurons, counted from 0. Got {index} instead.")
    return sites[name], index

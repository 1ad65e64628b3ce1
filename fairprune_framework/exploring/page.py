"""The page of `fairprune explore`: gradio on the loopback interface, without telemetry or external resources."""

from __future__ import annotations

import html
import os
from typing import TYPE_CHECKING, Any

from fairprune_framework.errors import UserError
from fairprune_framework.evaluation.metrics.generation import ARTICLE_PROMPTS, Continuation, first_difference
from fairprune_framework.exploring.compare import Comparison, Explorer
from fairprune_framework.reporting.charts.chart import BLUE, VERMILLION, axis
from fairprune_framework.reporting.charts.tokens import TAPS, token_projection
from fairprune_framework.reporting.prose import Span, diff_tokens
from fairprune_framework.utilities.aside import answer

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FONTS = ("system-ui", "sans-serif")
MONOSPACED = ("ui-monospace", "monospace")


def build(explorer: Explorer) -> Any:
    """The page as `gradio.Blocks`, not yet served.

    Raises:
        UserError: gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read on import
    try:
        import gradio as gr
    except ImportError as error:
        raise UserError("exploring needs gradio: pip install 'fairprune_framework[explore]'") from error

    def compare(first: str, second: str, tap: str, layer: float) -> tuple[Any, ...]:
        try:
            comparison = explorer.compare(first, second)
        except UserError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        return (
            facts(comparison),
            by_layer(comparison),
            projection(comparison, tap, int(layer)),
            *(next_tokens(comparison, index) for index in (0, 1)),
            comparison,
        )

    def again(comparison: Comparison | None, tap: str, layer: float) -> Any:
        return None if comparison is None else projection(comparison, tap, int(layer))

    def generate(first: str, second: str) -> str:
        try:
            return generations(explorer.generate(first, second))
        except UserError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error

    with gr.Blocks(title="fairprune explore", analytics_enabled=False) as page:
        gr.HTML(
            f"<h1>{html.escape(explorer.name)}</h1><p>Two prompts that differ in one word; before: the original, after: "
            f"{html.escape(explorer.how)}. One pair is an observation about these two texts, not evidence about others.</p>"
        )
        with gr.Row():
            first = gr.Textbox(label="First prompt", value=ARTICLE_PROMPTS[0], lines=2, elem_id="first")
            second = gr.Textbox(label="Second prompt", value=ARTICLE_PROMPTS[1], lines=2, elem_id="second")
        with gr.Row():
            go = gr.Button("Compare", variant="primary", elem_id="compare")
            write = gr.Button("Generate", elem_id="generate")
        told = gr.HTML(elem_id="facts")
        layers = gr.Plot(label="Activation difference by layer", elem_id="by-layer")
        with gr.Row():
            tap = gr.Radio(list(TAPS), value=TAPS[-1], label="Output", elem_id="tap")
            layer = gr.Slider(
                explorer.layers[0],
                explorer.layers[-1],
                value=explorer.layers[len(explorer.layers) // 2],
                step=1,
                label="Layer",
                elem_id="layer",
            )
        plane = gr.Plot(label="Tokens in two dimensions (PCA)", elem_id="projection")
        with gr.Row():
            headers = ["token", "before", "after"]
            tables = [
                gr.Dataframe(label=f"Next token, {name} prompt", headers=headers, interactive=False, elem_id=f"next-{name}")
                for name in ("first", "second")
            ]
        written = gr.HTML(elem_id="written")
        kept = gr.State(None)
        go.click(compare, [first, second, tap, layer], [told, layers, plane, *tables, kept], api_name="compare")
        write.click(generate, [first, second], written, api_name="generate")
        for choice in (tap, layer):
            choice.change(again, [kept, tap, layer], plane, api_visibility="private")
    return page


LOOPBACK = ("127.0.0.1", "localhost")
"""Names under which a browser of this machine asks; a page of others that resolves its name to this address is refused."""


def theme() -> Any:
    """gradio's default theme with system fonts: the original loads them from a font service."""
    import gradio as gr

    return gr.themes.Default(font=list(FONTS), font_mono=list(MONOSPACED))


def serve(explorer: Explorer, host: str = "127.0.0.1", port: int | None = None, block: bool = True) -> Any:
    """Serve the page; without `block` return (page, local address) at once.

    Raises:
        UserError: gradio is not installed, or the port is taken.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    page = build(explorer)
    hosts = ["*"] if host in ("0.0.0.0", "::") else [host, *LOOPBACK]
    try:
        _, url, _ = page.queue(default_concurrency_limit=1).launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            inbrowser=False,
            theme=theme(),
            footer_links=[],
            max_file_size=1,
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]},
        )
    except OSError as error:
        raise UserError(f"cannot serve on {host}{'' if port is None else f':{port}'}: {error}") from error
    if not block:
        return page, url
    answer(f"exploring {explorer.run.folder} at {url} (Ctrl-C stops)")
    page.block_thread()
    return page, url


# -- content -----------------------------------------------------------------------------------------------------------------


def facts(comparison: Comparison) -> str:
    """The two numbers of the pair, before and after."""
    rows = []
    for name, of in (("next-token divergence (nats)", "divergence"), ("activation difference", "activation_difference")):
        before = getattr(comparison.before, of)
        after = None if comparison.after is None else getattr(comparison.after, of)
        change = f"{after / before - 1:+.1%}" if after is not None and before > 0 else "–"
        shown = "–" if after is None else f"{after:.4g}"
        rows.append(f"<tr><th>{name}</th><td>{before:.4g}</td><td>{shown}</td><td>{change}</td></tr>")
    equal = "equal" if comparison.before.equal_length else f"unequal ({comparison.tokens[0]} and {comparison.tokens[1]})"
    return (
        "<table><thead><tr><th></th><th>before</th><th>after</th><th>change</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table><p>Token counts: {equal}. One pair, no interval: not evidence.</p>"
    )


def by_layer(comparison: Comparison) -> Figure:
    """Mean activation difference of the pair, by layer."""
    import plotly.graph_objects as go

    traces = [go.Scatter(x=comparison.layers, y=comparison.before.by_layer, name="before", line={"color": BLUE})]
    if comparison.after is not None:
        line = {"color": VERMILLION, "dash": "dash"}
        traces.append(go.Scatter(x=comparison.layers, y=comparison.after.by_layer, name="after", line=line))
    layout = {"xaxis": axis("layer"), "yaxis": axis("mean activation difference"), "template": "plotly_white", "height": 380}
    return go.Figure(data=traces, layout=layout)


def projection(comparison: Comparison, tap: str, layer: int) -> Figure | None:
    """The tokens of both prompts at one output of one layer; None if the model has neither output."""
    chart = token_projection(comparison.source)
    if chart is None:
        return None
    names = [control.options for control in chart.controls]
    taps = [name.split()[0].lower() for name in names[1]]
    output = taps.index(tap) if tap in taps else 0
    depth = names[2].index(str(layer)) if str(layer) in names[2] else 0
    return chart.figure(0, output, depth)


def next_tokens(comparison: Comparison, prompt: int) -> list[list[str]]:
    """Rows of the table: token, before, after."""
    return [
        [repr(one.token), f"{one.before:.2%}", "–" if one.after is None else f"{one.after:.2%}"]
        for one in comparison.next_tokens[prompt]
    ]


def generations(texts: list[tuple[str, Continuation, Continuation | None]]) -> str:
    """Continuations with differing words marked and the first differing token framed; always text, never markup."""
    parts = []
    for prompt, before, after in texts:
        parts.append(f"<h3 dir='auto'>{html.escape(prompt)}</h3>")
        if after is None:
            shown = [("before", [Span(text=before.text, differs=False)])]
        else:
            apart = diff_tokens(before.text, after.text, first_difference(before, after))
            shown = list(zip(("before", "after"), apart, strict=True))
        for name, spans in shown:
            parts.append(f"<p dir='auto'><b>{name}</b> {''.join(map(_marked, spans))}</p>")
    return "".join(parts)


def _marked(span: Span) -> str:
    text = html.escape(span.text)
    if span.first:
        return f"<mark style='outline: 2px solid' title='first differing token'>{text}</mark>"
    return f"<mark>{text}</mark>" if span.differs else text

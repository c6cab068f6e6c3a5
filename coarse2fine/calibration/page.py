"""A kit's page: what is promised and why, in a file that needs nothing else and runs nothing."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from coarse2fine.page.render import render

_ORIGINS = {
    "given": "given by the user",
    "trained": "trained for this kit by nnU-Net's own trainer",
    "fine": "the fine model itself, at a coarser voxel size",
}
_FOREGROUND = {
    "labels": "Foreground is that of the true labels.",
    "one-stage": "<strong>There were no labels.</strong> Foreground is what the fine model finds everywhere, and every "
    "figure below is about agreement with it, not about truth.",
}


def kit_page(name: str, calibration: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """The page.

    Args:
        name: Of the kit.
        calibration: Content of ``calibration.json``.
        about: What the card says beside files and software.

    Returns:
        HTML without scripts and without references to other files; names of strangers are escaped.
    """
    search, result = calibration["search"], calibration["result"]
    miss = about["asked"]["miss"]
    parts = [
        f"<h1>{escape(name)}</h1>",
        f"<p class=big>Promised: {escape(about['promise'])}.</p>",
        _chosen(search, result["limit"], about["ways_out"]),
        f"<p>{_FOREGROUND[about['foreground']]}</p>",
        f"<p><code>c2f-infer -i scan.nii.gz -o labels.nii.gz -c {escape(name)}</code></p>",
        "<h2>What thresholds miss</h2>",
        f"<p>Each line is a case. Below the dashed line, at most {100 * miss:g} % of a case's foreground lies outside "
        f"of its boxes. {_threshold(result)}</p>",
        _picture(_misses_plot(calibration["cases"], result["threshold"], miss), "missed foreground by threshold"),
        _cases_table(calibration, miss, about["looked_at_by"]),
        *_search(search),
        *([f"<p>{escape(calibration['agent']['statement'])}.</p>"] if calibration["agent"] else []),
        "<h2>How it was made</h2>",
        _facts(about, calibration),
    ]
    body = Markup("\n".join(parts))  # whose parts are escaped above
    return render("plain.html", title=f"{name}: a coarse2fine kit", body=body)


def _chosen(search: Mapping[str, Any] | None, limit: str | None, ways_out: str | None) -> str:
    if limit is not None:
        return f"<p class=big>One-stage mode is all that is left: {escape(limit)}.</p><p>What may help: {ways_out}.</p>"
    if search is None:
        return "<p class=big>Settings are those that were given; how fast they are was not measured.</p>"
    return (
        f"<p class=big>Settings: <em>{escape(search['winner'])}</em>, {search['ratio']:.3g} times as fast as one-stage "
        f"mode (medians of {len(search['one_stage'])} cases on the machine that made this kit): "
        f"{escape(search['reason'])}.</p>"
    )


def _threshold(result: Mapping[str, Any]) -> str:
    kind = "lowest threshold that was tried" if result["limit"] else "kit's threshold"
    boxes = f"{100 * result['boxes']:.3g} % of a volume (median)"
    return f"The {kind} is {result['threshold']:g}, where boxes hold {boxes}."


def _search(search: Mapping[str, Any] | None) -> list[str]:
    """What was tried."""
    if search is None:
        return []
    mirrored = "" if search["mirrored"] else ", without mirroring on either side"
    return [
        "<h2>Which settings were tried</h2>",
        f"<p>Loss is one-stage mode's mean Dice less the candidate's, {_against(search)}, on the same cases{mirrored}. "
        f"The bound holds for the mean over cases like these, with {100 * search['confidence']:g} % confidence; few "
        f"cases make it wide. At most {search['loss']:g} may be lost.{_left_out(search)}</p>",
        _picture(_search_plot(search), "loss against speed of all candidates"),
        _candidates_table(search),
    ]


def _against(search: Mapping[str, Any]) -> str:
    return "against true labels" if search["labelled"] else "where one-stage mode's own result counts as the truth"


def _left_out(search: Mapping[str, Any]) -> str:
    left = search["left_out"]
    return f" For {left} more case(s) there was no time." if left else ""


def _cases_table(calibration: Mapping[str, Any], most: float, looked: Mapping[str, str]) -> str:
    missed = calibration["result"]["missed"]
    rows = []
    for case in calibration["cases"]:
        there = missed[case["name"]]
        share = next(
            (one["boxes"] for one in case["misses"] if one["threshold"] == calibration["result"]["threshold"]), None
        )
        rows.append(
            [
                case["name"],
                f"{case['foreground']:,}",
                _limit(case["misses"], most),
                "?" if there is None else f"{100 * there:.3g} %",
                "?" if share is None else f"{100 * share:.3g} %",
                looked.get(case["name"], ""),
            ]
        )
    head = ("case", "foreground voxels", "highest threshold that keeps it", "missed", "boxes", "looked at by")
    text = _table(head, rows, numbers=4)
    if calibration["empty"]:
        text += f"<p>Without foreground, so that nothing can be missed: {escape(', '.join(calibration['empty']))}.</p>"
    return text


def _limit(misses: Sequence[Mapping[str, Any]], most: float) -> str:
    kept = "none"
    for miss in misses:
        if miss["missed"] > most:
            break
        kept = f"{miss['threshold']:g}"
    return kept


def _candidates_table(search: Mapping[str, Any]) -> str:
    rows = [
        [
            one["name"],
            ", ".join(f"{key} = {value}" for key, value in one["changes"].items()) or "as calibrated",
            str(len(one["losses"])),
            f"{one['mean_loss']:.4f}",
            "none" if one["bound"] is None else f"{one['bound']:.4f}",
            f"{one['worst']:.4f}",
            f"{one['ratio']:.3g}",
            one["dropped"]
            or ("chosen" if one["name"] == search["winner"] else "qualifies" if one["qualifies"] else "loses too much"),
        ]
        for one in search["tried"]
    ]
    return _table(
        ("candidate", "settings", "cases", "mean loss", "bound", "worst", "times as fast", ""), rows, numbers=5
    )


def _facts(about: Mapping[str, Any], calibration: Mapping[str, Any]) -> str:
    trained = about["trained_on"]
    facts = [
        (
            "coarse model",
            f"{_ORIGINS[about['coarse']]}; voxels of {' x '.join(f'{edge:g}' for edge in about['coarse_spacing'])}",
        ),
        *((f"trained as {name}", f"on {len(cases)} cases: {', '.join(cases)}") for name, cases in trained.items()),
        ("calibrated on", ", ".join(about["cases"])),
        *((f"voxels {one['factor']} times as long", _spacing(one)) for one in calibration["spacings"]),
        ("fine model", about["fine_model"]),
        ("asked for", ", ".join(f"{key} {value}" for key, value in about["asked"].items() if value is not None)),
        ("made in", f"{about['minutes']:g} minutes{_earlier(about)}, seed {about['seed']}"),
    ]
    return _table(("", ""), [list(fact) for fact in facts])


def _earlier(about: Mapping[str, Any]) -> str:
    return ", not counting what an earlier run had done" if about["resumed"] else ""


def _spacing(look: Mapping[str, Any]) -> str:
    if look["limit"] is None:
        return "misses too much at every threshold"
    return (
        f"keeps the promise up to a threshold of {look['limit']:g}, for {100 * look['cost']:.3g} % of the voxels that "
        "one-stage mode puts into networks"
    )


def _table(head: Iterable[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """A table whose last ``numbers`` columns but one are numbers."""
    text = "".join(f'<th scope="col">{escape(name)}</th>' if name else "<td></td>" for name in head)
    lines = []
    for row in rows:
        first = len(row) - 1 - numbers
        cells = (
            f"<td{' class=n' if first <= index < len(row) - 1 else ''}>{escape(cell)}</td>"
            for index, cell in enumerate(row)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = f"<thead><tr>{text}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="wide" tabindex="0" role="group" aria-label="table"><table>{body}</table></div>'


def _misses_plot(cases: Sequence[Mapping[str, Any]], threshold: float, most: float) -> Figure:
    figure = Figure((8, 4), layout="constrained")
    axes = figure.add_subplot()
    for case in cases:
        points = [(miss["threshold"], 100 * miss["missed"]) for miss in case["misses"]]
        axes.plot(*zip(*points, strict=True), label=case["name"] if len(cases) <= 12 else None, linewidth=1)
    axes.axhline(100 * most, color="black", linestyle="--", linewidth=1)
    axes.axvline(threshold, color="black", linewidth=1)
    axes.set(
        xscale="log", yscale="symlog", ylim=(0, 100), xlabel="threshold of the heatmap", ylabel="missed foreground, %"
    )
    if len(cases) <= 12:
        axes.legend(fontsize="small", loc="upper left")
    return figure


def _search_plot(search: Mapping[str, Any]) -> Figure:
    figure = Figure((8, 4), layout="constrained")
    axes = figure.add_subplot()
    for one in search["tried"]:
        bound = one["bound"]
        up = max(bound - one["mean_loss"], 0) if bound is not None and math.isfinite(bound) else 0
        axes.errorbar(one["ratio"], one["mean_loss"], yerr=[[0], [up]], fmt="o", capsize=3, label=one["name"])
    axes.axhline(search["loss"], color="black", linestyle="--", linewidth=1)
    axes.set(xlabel="times as fast as one-stage mode", ylabel="loss of Dice, and its bound")
    axes.legend(fontsize="small")
    return figure


def _picture(figure: Figure, words: str) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<p><img alt="{escape(words)}" src="data:image/png;base64,{data}"></p>'

"""docs/shipping.md's table of equal classes, from the lines that tools/parity.py wrote."""

from typing import Any

Row = dict[str, Any]  # a line of docs/results/parity.jsonl


def block_of(rows: list[Row]) -> str:
    """The lowest share of equal classes over a network's forms, by network and method, and what the codes say."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    networks = list(dict.fromkeys((row["network"], row["images"]) for row in rows))
    by = {(row["network"], row["images"], row["method"]): row["forms"] for row in rows}
    lines = ["| network | images | " + " | ".join(methods) + " |", "|---|---:" + "|---:" * len(methods) + "|"]
    for network, images in networks:
        cells = [_lowest(by.get((network, images, method))) for method in methods]
        lines.append(f"| {network} | {images} | " + " | ".join(cells) + " |")
    forms = [form for row in rows for form in row["forms"].values() if "codes" in form]
    codes, different, unexplained = (
        sum(form[name] for form in forms) for name in ("codes", "different", "unexplained")
    )
    lines += ["", f"Codes compared: {codes:,}; {different:,} differ, {unexplained:,} of them unexplained by float32."]
    return "\n" + "\n".join(lines) + "\n\n"


def _lowest(forms: dict[str, dict[str, Any]] | None) -> str:
    return "–" if forms is None else f"{min(form['same'] for form in forms.values()):.2f} ({len(forms)})"

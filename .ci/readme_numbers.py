"""Write the results table of README.md from results/; with --check, fail when it is out of date."""

import sys
from pathlib import Path

from chestxray.results import comparison_table, read_results

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results -->\n", "<!-- /results -->"
METRICS = ("auroc", "accuracy", "sensitivity", "specificity", "f1")


def table() -> str:
    """Markdown table of all models on record with test scores."""
    lines = ["| model | split | initial weights | parameters | AUROC | accuracy | sensitivity | specificity "
             "| F1 |", "|---|---|---|---|---|---|---|---|---|"]
    for _, row in comparison_table(read_results(ROOT / "results")).iterrows():
        scores = [f"{row[m]:.3f} ({row[f'{m}_low']:.3f}–{row[f'{m}_high']:.3f})" for m in METRICS]
        weights = row["weights"].replace("vgg16_notop.weights.h5", "ImageNet").replace("imagenet", "ImageNet")
        lines.append(f"| {row['name'].split('-')[0]} | {row['split_rule']} | {weights} | "
                     f"{row['parameter_count']:,} | {' | '.join(scores)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    wanted = before + BEGIN + table() + END + after
    if "--check" in sys.argv:
        return int(text != wanted)
    path.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Score predicted masks against the ground truth: Dice and IoU per case, and their means."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guided_diffusion_core import cli, evaluation  # noqa: E402
from guided_diffusion_core.config import DataConfig, SamplingConfig  # noqa: E402
from guided_diffusion_core.data import list_truths  # noqa: E402


def main():
    parser = cli.CommandParser(__doc__)
    parser.add_argument("--inp_pth", default="./results/", metavar="FOLDER",
                        help="folder of predictions, the --out_dir of segmentation_sample.py "
                             "(default: ./results/)")
    parser.add_argument("--out_pth", "--data_dir", dest="data_dir", default="", metavar="FOLDER",
                        help="folder of the data with its ground truth")
    cli.add_settings(parser, DataConfig, "data_name", "slices")
    cli.add_settings(parser, SamplingConfig, "threshold")
    parser.add_argument("--summary", default="", metavar="FILE",
                        help="where to write the scores as JSON (default: summary.json in --inp_pth)")
    args = parser.parse_args()
    data = DataConfig(**{name: value for name, value in cli.given_settings(args).items() if name != "threshold"})
    threshold = cli.given_settings(args).get("threshold", SamplingConfig.threshold)
    summary = evaluation.evaluate(args.inp_pth, list_truths(data), threshold)
    path = args.summary or Path(args.inp_pth) / "summary.json"
    evaluation.write_summary(path, summary)
    print(evaluation.format_table(summary))
    print(f"written to {path}")


if __name__ == "__main__":
    cli.run_command(main)

"""Score predicted masks against the ground truth: summary.json with nnU-Net's keys, and an HTML report."""

from pathlib import Path

from guided_diffusion_core.command_line import scoring_flags


def add_flags(parser):
    """Add the flags."""
    parser.description = __doc__
    parser.add_argument(
        "--inp_pth",
        "--pred_path",
        dest="inp_pth",
        default="./results/",
        metavar="FOLDER",
        help="folder of predictions, the --out_dir of medsegdiff sample (default: ./results/)",
    )
    scoring_flags.add_flags(parser)
    parser.add_argument(
        "--protocol",
        choices=("native", "upstream"),
        default="native",
        help="native: one threshold, at the truth's own size; upstream: the original's mean over five "
        "thresholds at 256 pixels, of 2D images (default: native)",
    )
    parser.add_argument(
        "--summary",
        default="",
        metavar="FILE",
        help="where to write the scores as JSON (default: summary.json in --inp_pth, "
        "summary_upstream.json with --protocol upstream)",
    )
    parser.add_argument(
        "--report",
        default="",
        metavar="FILE",
        help="where to write the HTML report (default: report.html in --inp_pth; none with --protocol upstream)",
    )


def run(args):
    """Score by the protocol that the flags name."""
    (score_upstream if args.protocol == "upstream" else score)(args)


def score(args):
    """Score, write the summary and the report, print the table."""
    from guided_diffusion_core import data, evaluation
    from guided_diffusion_core.data.walk import saying_left_out
    from guided_diffusion_core.errors import UserError, collecting
    from guided_diffusion_core.evaluation.pictures import ImageSource
    from guided_diffusion_core.evaluation.report import write_report
    from guided_diffusion_core.sampling.folder import as_sampled

    config = scoring_flags.data_config(args)
    config, note = as_sampled(config, args.inp_pth)
    folder = Path(args.inp_pth)
    threshold = scoring_flags.threshold(args)
    surfaces = scoring_flags.surfaces(args)
    with saying_left_out():
        truths = data.list_truths(config)
    with collecting() as problems:
        summary = evaluation.evaluate(args.inp_pth, truths, threshold, surfaces)
    scored = {row["case"] for row in summary["metric_per_case"]}
    truths = [truth for truth in truths if truth.name in scored]
    path = args.summary or folder / "summary.json"
    report = args.report or folder / "report.html"
    evaluation.write_summary(path, summary)
    write_report(report, summary, args.inp_pth, truths, ImageSource(config), args.pictures)
    print(evaluation.format_table(summary))
    if note:
        print(note)
    print(f"written to {path} and {report}")
    if problems:
        lines = "\n".join(map(str, problems))
        raise UserError(
            f"{lines}\n{len(problems)} cases could not be scored; the scores above are those of the others."
        )


def score_upstream(args):
    """The same by the original's rule, without a report."""
    from guided_diffusion_core import data, evaluation

    scoring_flags.require_not_given(args, "--protocol upstream")
    summary = evaluation.evaluate_upstream(args.inp_pth, data.list_truths(scoring_flags.data_config(args)))
    path = args.summary or Path(args.inp_pth) / "summary_upstream.json"
    evaluation.write_summary(path, summary)
    print(evaluation.format_upstream(summary))
    print(f"written to {path}")

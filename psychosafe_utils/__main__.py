"""Command line: run the notebooks, publish a run, judge a file of answers, or let people rate them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
import yaml

from psychosafe_utils.config import RATERS, ROOT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m psychosafe_utils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the notebooks in order; the same command resumes")
    run.add_argument("--profile", default="quick", help="smoke, quick, full or paper (a file in profiles/)")
    run.add_argument("--run-id", default="", help="folder below --runs-dir; the profile's name by default")
    run.add_argument("--runs-dir", type=Path, default=ROOT / "runs")
    run.add_argument("--from", dest="start", type=int, default=0, metavar="N", help="start at notebook N")
    run.add_argument("--only", type=int, default=0, metavar="N", help="run notebook N alone")
    run.add_argument("-p", dest="overrides", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter")
    publish = commands.add_parser("publish", help="copy a run's executed notebooks and figures into the repository")
    publish.add_argument("run_id")
    commands.add_parser("corpus", help="build data/corpus from its cards and written rows, and check it")
    commands.add_parser("train-refusals", help="train the refusal model on the labelled answers, and test it on sets that it has not seen")
    check = commands.add_parser("check", help="check files of scenario cards or written rows against the writing rules")
    check.add_argument("files", type=Path, nargs="+", help="JSONL, named after its cluster")
    check.add_argument("--show", type=int, default=0, metavar="N", help="print N assembled rows of every card")
    rate = commands.add_parser("rate", help="serve a study's rating page on this computer")
    rate.add_argument("study", type=Path, help="folder that ratings.make_study made")
    rate.add_argument("--port", type=int, default=5006)
    judge = commands.add_parser("judge", help="judge a CSV of answers (columns id, prompt, response; optional cluster, region)")
    judge.add_argument("answers", type=Path)
    judge.add_argument("-o", "--output", type=Path, required=True)
    judge.add_argument("--rater", action="append", default=[], choices=RATERS, help="rule unless told; several make a panel as well")
    judge.add_argument("--endpoint", default="", help="llm: base URL of an OpenAI-compatible server; the key stands in OPENAI_API_KEY")
    judge.add_argument("--model", default="", help="llm: the model's name there; local: a hub id or folder")
    judge.add_argument("--rubric", default="published.v2", help="llm, local: published.v2 or extended.v1")
    judge.add_argument("--separate", action="store_true", help="llm: a call for each criterion instead of one for all")
    judge.add_argument("--workers", type=int, default=8, help="llm: calls under way at a time")
    judge.add_argument("--four-bit", action="store_true", help="local, guard: load the model's linear layers as 4-bit NF4")
    judge.add_argument("--repeats", type=int, default=1, help="llm: times that each answer is judged")
    judge.add_argument("--generator", action="append", default=[], help="llm, local: a model that wrote answers; a judge of its family is refused")
    judge.add_argument("--own-family", action="store_true", help="llm, local: judge answers of the judge's own family all the same")
    guard = commands.add_parser("guard", help="judge a CSV of messages (column prompt; optional response): harmful, refused, harmful answer")
    guard.add_argument("messages", type=Path)
    guard.add_argument("-o", "--output", type=Path, required=True)
    guard.add_argument("--model", default="", help="a guard of WildGuard's format (allenai/wildguard, a folder, or its name at --endpoint); the embedded one unless told")
    guard.add_argument("--endpoint", default="", help="base URL of an OpenAI-compatible server that holds the guard")
    guard.add_argument("--four-bit", action="store_true", help="load the guard's linear layers as 4-bit NF4")
    commands.add_parser("train-guard", help="train the embedded guard on the corpus and the contrast pairs, and measure it")
    return parser


def judge_file(args: argparse.Namespace) -> None:
    """Command `judge`; a model's replies are kept beside the output, so that a second start goes on."""
    from psychosafe_utils import judges, raters

    journal, rated_by = args.output.with_suffix(".replies.jsonl"), args.rater or ["rule"]

    def rate(answers):
        rows = [
            raters.judge_answers(
                answers, rater, journal=journal, repeats=args.repeats, together=not args.separate, workers=args.workers,
                generators=args.generator, own_family=args.own_family, four_bit=args.four_bit,
                **({} if rater == "rule" and len(rated_by) > 1 else {"model": args.model, "endpoint": args.endpoint, "rubric": args.rubric}),
            ) for rater in rated_by
        ]
        return raters.with_panel(pd.concat(rows, ignore_index=True)) if len(rows) > 1 else rows[0]

    rows = judges.judge_file(args.answers, args.output, rate)
    if "llm" in rated_by:
        from psychosafe_utils.llm_judges import Endpoint, judging_cost

        print(judging_cost(journal, Endpoint(args.endpoint, args.model)).to_string())
    print(f"{rows.id.nunique()} answers judged, {int(rows.score.isna().sum())} scores missing: {args.output}")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a mistake of the user's is one line on stderr and exit code 2, a failed notebook 1."""
    args = _parser().parse_args(arguments)
    try:
        if args.command == "judge":
            judge_file(args)
        elif args.command == "corpus":
            from psychosafe_utils import corpus, quality

            prompts, pairs = corpus.build_corpus()
            print(corpus.check_corpus(prompts, pairs, duplicate_jaccard=0.5).to_string(index=False))
            corpus.save_corpus(prompts, pairs)
            print(quality.measure_corpus(prompts, pairs).to_string(index=False))
        elif args.command == "train-refusals":
            from psychosafe_utils.refusal_training import train_refusal_model

            print(train_refusal_model().to_string(index=False))
        elif args.command == "guard":
            from psychosafe_utils.guard import JUDGEMENTS, guard_file

            table = guard_file(args.messages, args.output, model=args.model, endpoint=args.endpoint, four_bit=args.four_bit)
            unscored = [int((table[list(JUDGEMENTS)] == status).any(axis=1).sum()) for status in ("parse_error", "failed")]
            print(f"{len(table)} messages judged, {unscored[0]} replies unread, {unscored[1]} requests failed: {args.output}")
        elif args.command == "train-guard":
            from psychosafe_utils.guard_training import train_guard

            print(train_guard().to_string(index=False))
        elif args.command == "check":
            from psychosafe_utils.writing import print_check

            return print_check(args.files, args.show)
        elif args.command == "rate":
            from psychosafe_utils.rating_page import serve

            serve(args.study, args.port)
        elif args.command == "publish":
            from psychosafe_utils.runs import publish_run

            for path in publish_run(ROOT / "runs" / args.run_id):
                print(path.relative_to(ROOT))
        else:
            from psychosafe_utils.runs import run_notebooks, show_result

            overrides = {name: yaml.safe_load(value) for name, value in args.overrides}
            run_dir = run_notebooks(
                args.profile, run_id=args.run_id, runs_dir=args.runs_dir, start=args.start, only=args.only, overrides=overrides,
            )
            if (run_dir / "tables" / "04_effects.parquet").exists():
                show_result(run_dir)
    except ValueError as error:  # ConfigError, TableError, CorpusError and their like
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:  # NotebookError: a cell failed
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

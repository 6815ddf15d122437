"""isotrace annotate: what do the features of a dictionary mean, and should one believe it?"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from isotrace.report.atlas.annotation import AnnotationResult


def command(
    subject: Annotated[str, typer.Argument(help="bundled:molm, pypi:rxnfp/bert_pretrained, hf:org/name or a folder.")],
    dictionary: Annotated[str, typer.Argument(help="bundled:molm-clt or a folder.")],
    data: Annotated[str, typer.Option(help="File of sequences (CSV, TSV, Parquet, .smi, FASTA, …), or - for stdin.")],
    out: Annotated[Path, typer.Option(help="Run folder.")],
    concepts: Annotated[list[Path] | None, typer.Option(help="Concept file: patterns or labels; repeatable.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="A column of the data as a concept, KIND:COLUMN[:NAME]; repeatable.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    domain: Annotated[str | None, typer.Option(help="What tokens stand for, where the subject does not say.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of the file that holds the sequences.")] = None,
    group: Annotated[str | None, typer.Option(help="Column of groups that a split keeps together.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first rows.")] = None,
    sources: Annotated[
        str, typer.Option(help="What stands beside the dictionary, by commas.")
    ] = "dictionary,neurons,untrained,random,token_identity",
    untrained: Annotated[
        Path | None, typer.Option(help="Dictionary of the untrained subject with --seed, instead of training one.")
    ] = None,
    untrained_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens the untrained subject's one is trained on.")
    ] = 400_000,
    permutations: Annotated[int, typer.Option(min=20, help="Shuffles of the labels behind every p.")] = 500,
    bootstrap: Annotated[int, typer.Option(min=20, help="Draws of sequences for the intervals.")] = 200,
    min_positive: Annotated[int, typer.Option(min=1, help="Tokens a concept needs on each side.")] = 20,
    spellings: Annotated[int, typer.Option(min=0, help="Other spellings per sequence, for stability.")] = 3,
    effects: Annotated[bool, typer.Option(help="Ablate each feature once to see what it does to the output.")] = True,
    structure: Annotated[
        Path | None, typer.Option(help="PDB or mmCIF file whose chain is among the sequences.")
    ] = None,
    explain: Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible endpoint; off by default.")] = None,
    explain_model: Annotated[str | None, typer.Option(help="Model name at that endpoint.")] = None,
    explain_features_at_most: Annotated[
        int, typer.Option("--explain-features", min=1, help="Features to explain, unexplained first.")
    ] = 50,
    explain_key: Annotated[str, typer.Option(help="Environment variable that holds the key.")] = "OPENAI_API_KEY",
    attach: Annotated[bool, typer.Option("--attach", help="Put the names on the dictionary's shelf.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace another command's run in --out.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of split, shuffles, bootstrap and nulls.")] = 0,
) -> None:
    """Name features in the domain's terms, with statistics, beside neurons, an untrained subject and more nulls."""
    from isotrace.annotation.annotate import AnnotationConfig, annotate
    from isotrace.annotation.nulls.sources import feature_activations
    from isotrace.base.errors import InputError, SubjectError
    from isotrace.base.identity import Source
    from isotrace.base.progress import command_line, progress
    from isotrace.base.runs import dumps, open_run
    from isotrace.datasets.annotated import prepare
    from isotrace.datasets.concept_files import label_columns, read_concept_file
    from isotrace.datasets.inputs import read_inputs
    from isotrace.dictionaries.saving import load_dictionary
    from isotrace.dictionaries.shelf import attach as put_on_shelf
    from isotrace.dictionaries.shelf import shelf_folder
    from isotrace.domains.domain import domain_of
    from isotrace.report.atlas.annotation import AnnotationResult
    from isotrace.subjects.subject import load_subject

    config = AnnotationConfig(
        sources=tuple(name.strip() for name in sources.split(",")),
        n_permutations=permutations,
        n_bootstrap=bootstrap,
        min_positive=min_positive,
        untrained_tokens=untrained_tokens,
        spellings=spellings,
        effects=effects,
        seed=seed,
    )
    if explain is not None and not explain_model:
        raise InputError("--explain needs --explain-model: name a model of that endpoint.")
    shelf = shelf_folder(dictionary) if attach else None
    loaded = load_subject(subject, domain=domain)
    if loaded.files.domain is None:
        raise SubjectError(f"{subject} does not say what its tokens stand for: give --domain.")
    features = load_dictionary(dictionary, loaded)
    reader = domain_of(loaded.files.domain)
    rows, rejects = read_inputs(data, column=column)
    rows = rows if limit is None else rows.head(limit)
    given = [read_concept_file(path, reader) for path in concepts or []]
    given += [label_columns(rows, label, reader)] if label else []
    maps = {text: mapped for source in given if source.maps for text, mapped in source.maps.items()}
    if maps:
        reader = reader.with_maps(maps)  # pyright: ignore[reportAttributeAccessIssue]
    blank = None
    if untrained is not None:
        from isotrace.annotation.nulls.sources import untrained_subject

        other = untrained_subject(loaded, seed)
        blank = (other, load_dictionary(untrained, other))
    inputs: dict[str, Path | str | Source] = {
        **({} if structure is None else {"structure": structure}),
        "subject": Source.of(subject, loaded),
        "dictionary": Source.of(dictionary, features),
        "data": data if data == "-" else Path(data),
        **{f"concepts {place}": path for place, path in enumerate(concepts or [], start=1)},
    }
    shown = lambda items, text: progress(list(items), text)  # noqa: E731
    with open_run(out, command=command_line(), seed=seed, inputs=inputs, overwrite=overwrite) as run:
        prepared = prepare(
            loaded, reader, rows, given, seed=seed, group_column=group, rejects=rejects,
            progress=lambda items: shown(items, "reading"),
        )  # fmt: skip
        annotation = annotate(
            loaded, features, prepared, run.work, config, name_of=dictionary, untrained=blank, progress=shown
        )
        reader_of = partial(feature_activations, loaded, features)
        result = AnnotationResult.of(annotation, prepared, structure=structure, activations=reader_of)
        result.write(run)
        if explain is not None:
            from isotrace.annotation.explain.chat import Chat
            from isotrace.annotation.explain.explain_features import explain_features

            cache = out.with_name(f"{out.name}.answers.jsonl")
            chat = Chat(explain, explain_model or "", cache=cache, key_variable=explain_key)
            explained = explain_features(
                annotation.features, annotation.associations, prepared, loaded, features, chat,
                n_features=explain_features_at_most, seed=seed, progress=shown,
            )  # fmt: skip
            result = result.explained(explained)
            result.write(run)
    if shelf is not None:
        put_on_shelf("names", shelf, features, out)
    if json:
        typer.echo(dumps(result.to_dict() | {"rejects": result.tables["rejects"].to_dicts()}))
    else:
        show(result, out)


def show(annotation: "AnnotationResult", out: Path) -> None:
    """A table in the terminal: sources beside each other."""
    from rich.console import Console
    from rich.table import Table

    summary = annotation.to_dict()
    title = (
        f"{summary['subject']}: {summary['n_labelled']} of {summary['n_features']} features named, "
        f"{summary['n_concepts']} concepts, {summary['n_tokens']} tokens"
    )
    table = Table(title=title, title_justify="left")
    for name in ("concepts with a feature at q < 0.05", "F1 ≥ 0.5 [95 % CI]", "F1 ≥ 0.8 [95 % CI]", "features alive"):
        table.add_column(name, justify="left" if name.startswith("concepts") else "right")
    for name, found in summary["sources"].items():
        if "concepts_f1_50" not in found:
            table.add_row(name, found["reason"], "", "")
            continue
        counts = [(found[f"concepts_{level}"], *found[f"concepts_{level}_ci"]) for level in ("f1_50", "f1_80")]
        table.add_row(name, *(f"{n} [{low}, {high}]" for n, low, high in counts), str(found["n_alive"]))
    Console(width=110).print(table)
    for warning in summary["warnings"]:
        typer.echo(f"warning: {warning}")
    for index, text, reason in annotation.tables["rejects"].rows():
        typer.echo(f"  rejected row {index}: {text[:60]!r}: {reason}")
    typer.echo(f"atlas: {out / 'report.html'}")

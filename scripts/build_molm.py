"""Train the bundled subject `molm` from unlabelled molecules. Resumable: run the same command again.

    python scripts/build_molm.py DATA --work build/molm --out src/isotrace/assets/molm

1. corpus     canonicalise every training molecule; drop those held out by any split
2. tokenizer  whole-bracket tokens for frequent bracket atoms
3. train      masked-language modelling on randomised SMILES; checkpoints carry the data position
4. export     float16 safetensors in the Hugging Face layout, tokenizer beside it
The card is written by `scripts/card_molm.py`, from molecules the model never saw.
"""

import argparse
import copy
import json
import math
import multiprocessing as mp
import os
import random
import shutil
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
import polars as pl
import torch
from rdkit import Chem, RDLogger
from transformers import AutoTokenizer, EsmConfig, EsmForMaskedLM, PreTrainedTokenizerFast

from isotrace.domains.molecule.tokenizer import build_tokenizer
from isotrace.subjects.sources.source import write_record

RDLogger.DisableLog("rdApp.*")
MAX_LENGTH = 256
SHARD = 40_000
MOLECULENET = ("bace", "bbbp", "esol", "freesolv", "hiv", "lipophilicity", "qm8", "sider", "tox21")


def molecules(data: Path) -> tuple[list[str], list[str]]:
    """(training, held-out) SMILES as the origins write them; USPTO sides stay multi-fragment."""
    train, held = [], []
    train += pl.read_csv(data / "moses_sample/train_100k.csv.gz")["smiles"].to_list()
    for name in ("test_10k", "scaffold_test_5k"):
        held += pl.read_csv(data / f"moses_sample/{name}.csv.gz")["smiles"].to_list()
    tables = [next((data / "moleculenet").glob(f"{name}.csv*")) for name in MOLECULENET]
    for path in [*tables, data / "b3db/b3db_classification.csv.gz"]:
        frame = pl.read_csv(path, columns=["smiles", "split_scaffold"], infer_schema=False)
        seen = frame["split_scaffold"] == "train"
        train += frame.filter(seen)["smiles"].to_list()
        held += frame.filter(~seen)["smiles"].to_list()
    frame = pl.read_csv(data / "reactions/uspto50k_liu2017.csv.gz", columns=["split", "reactants", "product"])
    for side in ("reactants", "product"):
        train += frame.filter(pl.col("split") == "train")[side].to_list()
        held += frame.filter(pl.col("split") != "train")[side].to_list()
    return train, held


def canonical(smiles: str) -> str | None:
    mol = Chem.MolFromSmiles(smiles)
    return Chem.MolToSmiles(mol) if mol is not None and mol.GetNumAtoms() else None


def build_corpus(data: Path, work: Path) -> list[str]:
    path = work / "corpus.txt"
    if not path.exists():
        train, held = molecules(data)
        with mp.Pool(2) as pool:
            train = [s for s in pool.map(canonical, train, chunksize=500) if s]
            held = {s for s in pool.map(canonical, held, chunksize=500) if s}
        kept = sorted(set(train) - held)
        random.Random(0).shuffle(kept)
        (work / "heldout.txt").write_text("\n".join(sorted(held)))
        path.write_text("\n".join(kept))
    return path.read_text().splitlines()


def prepared(data: Path, work: Path) -> tuple[list[str], PreTrainedTokenizerFast]:
    """(corpus, tokenizer), made in `work` unless they are there."""
    work.mkdir(parents=True, exist_ok=True)
    corpus = build_corpus(data, work)
    if not (work / "tokenizer").exists():
        build_tokenizer(corpus, min_count=150, max_length=MAX_LENGTH).save_pretrained(work / "tokenizer")
    return corpus, AutoTokenizer.from_pretrained(work / "tokenizer")


def write_shard(corpus: list[str], tokenizer: PreTrainedTokenizerFast, shard: int, path: Path) -> None:
    """One shard of randomised spellings (one in ten Kekulé, one in ten canonical), tokenised."""
    rng = random.Random(shard)
    per_epoch = math.ceil(len(corpus) / SHARD)
    epoch, part = divmod(shard, per_epoch)
    order = np.random.default_rng(epoch).permutation(len(corpus))[part * SHARD : (part + 1) * SHARD]
    spelled = []
    for index in order:
        draw = rng.random()
        mol = Chem.MolFromSmiles(corpus[index])
        if draw < 0.1:
            Chem.Kekulize(mol, clearAromaticFlags=True)
        root = -1 if 0.1 <= draw < 0.2 else rng.randrange(mol.GetNumAtoms())
        kekule = draw < 0.1
        spelled.append(
            corpus[index] if root < 0 else Chem.MolToSmiles(mol, doRandom=True, canonical=False, kekuleSmiles=kekule)
        )
    ids = [i for i in tokenizer(spelled)["input_ids"] if len(i) <= MAX_LENGTH]
    flat = np.concatenate([np.asarray(i, dtype=np.uint16) for i in ids])
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, flat=flat, lengths=np.asarray([len(i) for i in ids], dtype=np.int32))
    temporary.rename(path)


def shard_worker(corpus_path: Path, tokenizer_path: Path, folder: Path, first: int, last: int, ahead: int) -> None:
    corpus = corpus_path.read_text().splitlines()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    parent = os.getppid()
    for stale in folder.glob("*.npz"):
        if not first <= int(stale.name[:5]) < last:
            stale.unlink()
    for shard in range(first, last):
        path = folder / f"{shard:05d}.npz"
        while shard - min((int(p.name[:5]) for p in folder.glob("*.npz")), default=shard) > ahead:
            time.sleep(2)
            if os.getppid() != parent:  # the trainer was killed
                return
        if not path.exists():
            write_shard(corpus, tokenizer, shard, path)


def batches(path: Path, tokens: int, seed: int) -> list[torch.Tensor]:
    """Unpadded batches `[n, length]` int64 of about `tokens` tokens: sequences grouped by exact length."""
    with np.load(path) as archive:
        flat, lengths = archive["flat"].astype(np.int64), archive["lengths"]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    result = []
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        block = np.stack([flat[starts[r] : starts[r] + length] for r in rows])
        result += list(torch.from_numpy(block).split(max(1, tokens // int(length))))
    random.Random(seed).shuffle(result)
    return result


def mask_tokens(
    ids: torch.Tensor, tokenizer: PreTrainedTokenizerFast, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """BERT masking at a rate drawn per sequence from U(0.05, 0.30): (inputs, chosen positions)."""
    rate = 0.05 + 0.25 * torch.rand(len(ids), 1, generator=generator)
    chosen = torch.rand(ids.shape, generator=generator) < rate
    chosen &= (ids != tokenizer.cls_token_id) & (ids != tokenizer.eos_token_id)
    kind = torch.rand(ids.shape, generator=generator)
    noise = torch.randint(len(tokenizer.all_special_ids), len(tokenizer), ids.shape, generator=generator)
    inputs = torch.where(chosen & (kind < 0.8), tokenizer.mask_token_id, ids)
    return torch.where(chosen & (kind >= 0.9), noise, inputs), chosen


def build_model(vocabulary: int, d_model: int, layers: int) -> EsmForMaskedLM:
    config = EsmConfig(
        vocab_size=vocabulary,
        hidden_size=d_model,
        num_hidden_layers=layers,
        num_attention_heads=d_model // 32,
        intermediate_size=4 * d_model,
        max_position_embeddings=MAX_LENGTH,
        position_embedding_type="rotary",
        token_dropout=False,
        emb_layer_norm_before=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=1,
        mask_token_id=4,
        # eager attention: the flash backward takes 40 % of a step on CPUs at these lengths
        attn_implementation="eager",
    )
    return EsmForMaskedLM(config)


def learning_rate(step: int, total: int, peak: float, warmup: int = 400) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))))


def permuted(ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every row of `ids [n, length]` with the tokens between its first and its last in another order."""
    order = torch.rand(ids[:, 1:-1].shape, generator=generator).argsort(1)
    return torch.cat([ids[:, :1], ids[:, 1:-1].gather(1, order), ids[:, -1:]], 1)


def export(model: EsmForMaskedLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """In half precision; whole or absent."""
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    copy.deepcopy(model).cpu().to(torch.float16).save_pretrained(part)
    tokenizer.save_pretrained(part)
    write_record(part, "molecule")
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)


def train(
    args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast, work: Path, keep: Collection[int] = (),
    shuffled: bool = False,
) -> EsmForMaskedLM:  # fmt: skip
    """`keep`: steps, 0 among them, after which the subject is exported to `work`/step-N. `shuffled`: on tokens in
    random order."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    model = build_model(len(tokenizer), args.d_model, args.layers).to(device)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)
    checkpoint, step, shard, position, seen = work / "checkpoint.pt", 0, 0, 0, 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, shard, position, seen = (state[k] for k in ("step", "shard", "position", "seen"))
    folder = work / "shards"
    folder.mkdir(exist_ok=True)
    arguments = (work / "corpus.txt", work / "tokenizer", folder, shard, 100_000, 3)
    worker = mp.get_context("spawn").Process(target=shard_worker, args=arguments, daemon=True)
    worker.start()
    if 0 in keep and step == 0:
        export(model, tokenizer, work / "step-0")
    encoder = torch.compile(model.esm, dynamic=True) if args.compile else model.esm
    started, log, running, gathered = time.time(), (work / "log.jsonl").open("a"), [], 0
    while step < args.steps:
        path = folder / f"{shard:05d}.npz"
        while not path.exists():
            time.sleep(0.5)
        for place, ids in list(enumerate(batches(path, args.tokens, shard)))[position:]:
            generator = torch.Generator().manual_seed(1_000_003 * shard + place)
            if shuffled:
                ids = permuted(ids, generator)
            inputs, chosen = mask_tokens(ids, tokenizer, generator)
            with torch.autocast(device.type, torch.bfloat16):
                hidden = encoder(inputs.to(device)).last_hidden_state
                logits = model.lm_head(hidden[chosen.to(device)])
            losses = torch.nn.functional.cross_entropy(logits.float(), ids[chosen].to(device), reduction="none")
            (losses.sum() / (args.tokens * 0.175)).backward()  # 0.175 = the mean masking rate
            running.append(losses.detach())
            seen, gathered = seen + ids.numel(), gathered + ids.numel()
            if gathered < args.tokens:  # batches of rare lengths are small: gather several into one step
                continue
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.lr)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step, gathered = step + 1, 0
            if step % 100 == 0 or step in keep:
                record = {"step": step, "shard": shard, "tokens": seen, "loss": torch.cat(running).mean().item()}
                log.write(json.dumps(record | {"seconds": round(time.time() - started)}) + "\n")
                log.flush()
                running = []
            if step in keep:
                export(model, tokenizer, work / f"step-{step}")
            if step % 250 == 0 or step in keep or step == args.steps:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                state |= {"shard": shard, "position": place + 1, "seen": seen}
                torch.save(state, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").rename(checkpoint)
            if step == args.steps:
                break
        else:
            path.unlink()
            shard, position = shard + 1, 0
    worker.terminate()
    return model.cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with moses_sample/, moleculenet/, b3db/, reactions/")
    parser.add_argument("--work", type=Path, default=Path("build/molm"))
    parser.add_argument("--out", type=Path, default=Path("src/isotrace/assets/molm"))
    parser.add_argument("--steps", type=int, default=6_500)
    parser.add_argument("--tokens", type=int, default=4_096, help="tokens per step")
    parser.add_argument("--d-model", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="needs a C++ compiler")
    args = parser.parse_args()
    _, tokenizer = prepared(args.data, args.work)
    model = train(args, tokenizer, args.work)
    export(model, tokenizer, args.out)


if __name__ == "__main__":
    main()

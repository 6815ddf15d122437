"""Do two versions of isotrace write the same traces, byte for byte?

    python benchmarks/same_traces.py BEFORE/src AFTER/src --work FOLDER [--only long protein]

Every file of every run is compared but for manifests, which hold times and the hashes of the rest; of pages the date is
left out. Runs of BEFORE that --work holds already are not made again. The protein model is random, 6 layers of 320.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

MOLM = ("bundled:molm", "bundled:molm-clt")
PROTEIN = ("protein", "protein-clt")
SHORT, LONG = "CC(=O)Oc1ccccc1C(=O)O", "CC1(C)SC2C(NC(=O)Cc3ccccc3)C(=O)N2C1C(=O)OCCNC(=O)c1ccccc1Cl"
GB1 = "MTYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
CASES: dict[str, tuple[str, ...]] = {
    "short": (*MOLM, SHORT, "--target", "probe:bbb"),
    "long": (*MOLM, LONG, "--target", "probe:bbb", "--map"),
    "mask": (*MOLM, SHORT, "--target", "mask:6", "--ablation", "zero", "--circuit", "effects"),
    "fidelity": (*MOLM, SHORT, "--target", "probe:logd", "--fidelity", "evaluated", "--seed", "3"),
    "pair": (*MOLM, SHORT, "--against", "COC(=O)c1ccccc1OC(C)=O", "--target", "probe:bbb"),
    "protein": (*PROTEIN, GB1, "--target", "mask:7", "--domain", "protein"),
}
DATE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")
SUBJECT = """
import sys, torch, transformers
from pathlib import Path
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from isotrace.dictionaries.build import build, configure
from isotrace.dictionaries.features import Features
from isotrace.dictionaries.saving import reference, save_dictionary
from isotrace.interventions import mean_values
from isotrace.subjects.subject import load_subject
special = ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>"]
words = {word: i for i, word in enumerate([*special, *"ACDEFGHIKLMNPQRSTVWYX"])}
backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
ends = [("<cls>", 0), ("<eos>", 2)]
backend.post_processor = processors.TemplateProcessing(single="<cls> $A <eos>", special_tokens=ends)
names = dict(zip(("cls", "pad", "eos", "unk", "mask"), special))
names = {f"{name}_token": token for name, token in names.items()}
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)
torch.manual_seed(0)
config = transformers.EsmConfig(vocab_size=len(words), hidden_size=320, num_hidden_layers=6, num_attention_heads=20,
    intermediate_size=1280, max_position_embeddings=1026, mask_token_id=4, pad_token_id=1, token_dropout=True,
    position_embedding_type="rotary", emb_layer_norm_before=False, initializer_range=0.1)
transformers.EsmForMaskedLM(config).save_pretrained("protein")
tokenizer.save_pretrained("protein")
subject = load_subject("protein", domain="protein")
dictionary = build(configure(subject, "crosslayer", n_features=1024, k=16), 0)
generator = torch.Generator().manual_seed(1)
for weight in dictionary.W_dec:
    weight.data = 0.05 * torch.randn(weight.shape, generator=generator)
batch = subject.tokenize([sys.argv[1], sys.argv[1][::-1]])
for layer, mean in enumerate(mean_values(subject, Features(dictionary), [batch])):
    dictionary.mean_activation[layer] = mean[:, 0]
    dictionary.density[layer] = (mean[:, 0] > 0).float().mul(0.1).add(1e-4)
save_dictionary(dictionary, Path("protein-clt"), reference(subject), dtype=torch.float32, training={})
"""


def run(source: Path, work: Path, *arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=work, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)[:200]}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def content(path: Path) -> bytes:
    return DATE.sub(b"", path.read_bytes()) if path.suffix == ".html" else path.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs=2, type=Path, metavar="SRC")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=CASES, default=[*CASES])
    args = parser.parse_args()
    work, before = args.work, args.sources[0]
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "protein-clt").is_dir():
        run(before, work, "-c", SUBJECT, GB1)
    if not (work / "evaluated").is_dir():
        small = ("--limit", "20", "--no-controls", "--data")
        small += (str(before.resolve() / "isotrace/assets/examples/solubility.csv"),)
        run(before, work, "-m", "isotrace", "evaluate", *MOLM, *small, "--out", "evaluated")
    different = 0
    for name in args.only:
        folders = []
        for source, which in zip(args.sources, ("before", "after"), strict=True):
            folder = work / which / name
            if which == "after" or not folder.is_dir():
                run(source, work, "-m", "isotrace", "trace", *CASES[name], "--out", "run", "--overwrite")
                folder.parent.mkdir(exist_ok=True)
                subprocess.run(["rm", "-rf", folder], check=True)
                (work / "run").rename(folder)
            folders.append({path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()})
        one, two = folders
        wrong = [
            *(one.keys() ^ two.keys()),
            *(p for p in one.keys() & two.keys() if content(one[p]) != content(two[p])),
        ]
        wrong = sorted(str(p) for p in wrong if p.name != "manifest.json")
        different += len(wrong)
        print(f"{name}: {len(one)} files, {'the same' if not wrong else 'different: ' + ', '.join(wrong)}", flush=True)
    raise SystemExit(different > 0)


if __name__ == "__main__":
    main()

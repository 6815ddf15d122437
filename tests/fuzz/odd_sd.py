"""SD files in the layouts that programs and people write."""

from random import Random

from odd import ODD, SMILES, Case, damaged
from rdkit import Chem, rdBase


def block(smiles: str, title: str, rng: Random) -> str:
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
        mol.SetProp("_Name", title)
        return Chem.MolToV3KMolBlock(mol) if rng.random() < 0.3 else Chem.MolToMolBlock(mol)


def sd(rng: Random) -> Case:
    n, end = rng.randrange(1, 7), rng.choice(["\n", "\r\n", "\r"])
    records, right, wrong = [], {}, set()
    odd_lines = [x for x in ODD if x != "$$$$"]
    for i in range(n):
        smiles = rng.choice(SMILES)
        canonical = Chem.MolToSmiles(Chem.MolFromSmiles(smiles))
        record, fields, good = block(smiles, f"r{i}", rng), {}, True
        for name in rng.sample(
            ["y", "_id", "name", "melting point", "input_name", "a (>7)", "größe", "index"], rng.randrange(4)
        ):
            value = rng.choice([str(i), "text", "", ">10", ">>CO", "two\nlines", "1,5", "x <y> z", "$$$"])
            header = rng.choice([f"> <{name}>", f">  <{name}>  ({i})", f"> 25-MAY-24 DT7 <{name}>", f"><{name}>"])
            gap = rng.choice(["\n", "\n", " \n", "\n\n", "\t\n"])
            record += f"{header}\n{value}\n{gap}" if value else f"{header}\n{gap}"
            fields[name] = value
        if fields and rng.random() < 0.2:  # nothing separates the last value and the end
            record = record.rstrip("\n\t ") + "\n"
        odd = rng.random()
        if odd < 0.1:
            record, good = record + f"{rng.choice(['stray', 'V2000', '<y>', '-'])}\n", fields == {}
            good = False if fields == {} else None  # inside a value it is part of that
        elif odd < 0.2:
            record, good = record.replace("M  END\n", "", 1), False
        elif odd < 0.25:
            record, good = "", False
        elif odd < 0.3:
            record, good = record + f"\n> {rng.choice(odd_lines)}\n{rng.choice(odd_lines)}\n\n", None
        elif odd < 0.35:
            record, good = record.replace(" 0  0", " 9  x", 3), None
        if good:
            right[i] = (canonical, {"name": f"r{i}", **{key: v for key, v in fields.items() if key == "y"}})
        elif good is False:
            wrong.add(i)
        records.append(record + rng.choice(["$$$$\n", "$$$$ end\n"]))
    content = "".join(records).replace("\n", end)
    if rng.random() < 0.3:
        return Case("a.sdf", damaged(content.encode(), rng), None)
    if n > 1 and rng.random() < 0.15:  # two run into each other: both are rejects
        whole = [block("CO", "a", rng), block("CN", "b", rng) + "$$$$\n", block("CF", "c", rng) + "$$$$\n"]
        return Case("a.sdf", "".join(whole).replace("\n", end).encode(), 3, {2: ("CF", {"name": "c"})}, {0, 1})
    return Case(rng.choice(["a.sdf", "a.SDF"]), content.encode(), n, right, wrong)

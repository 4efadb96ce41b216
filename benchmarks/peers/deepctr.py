"""DeepCTR-Torch in the benchmark, as its examples do it (pandas, scikit-learn).

`prepare WORLD`, `train TASK WORLD SEED` (a whole epoch) and `steps TASK WORLD SEED` (some steps of a model of the family).
"""

import pickle
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
import torch
from clock import (
    BATCH,
    CATEGORIES,
    CROSSES,
    EMBEDDING,
    EXPERT,
    EXPERTS,
    FACTOR,
    HEADS,
    HISTORY,
    MAPS,
    NUMBERS,
    RANK,
    RATE,
    TASK_TOWER,
    TOWER,
    UNIT,
    WARM,
    Memory,
    StepClock,
    auc,
    emit,
    folder,
    for_steps,
    preparing,
    settle,
    steps_of,
    timed,
)


def prepared(world):
    import pandas as pd
    from sklearn.preprocessing import LabelEncoder, MinMaxScaler

    text = {c: str for c in (CATEGORIES if world == "B" else ["hist_item", "hist_cate"])}
    train, test = (pd.read_csv(folder() / f"{world}_{part}.csv", dtype=text) for part in ("train", "test"))
    data = pd.concat([train, test], ignore_index=True)
    if world == "B":
        for c in CATEGORIES:
            data[c] = LabelEncoder().fit_transform(data[c])
        data[NUMBERS] = MinMaxScaler().fit_transform(data[NUMBERS])
        features = {c: data[c].to_numpy() for c in CATEGORIES + NUMBERS}
        return features, data["label"].to_numpy(), {c: int(data[c].max()) + 1 for c in CATEGORIES}, len(train)
    features = {"user_id": LabelEncoder().fit_transform(data["user_id"]) + 1}
    sizes = {"user_id": int(features["user_id"].max()) + 1}
    for name, history in (("item_id", "hist_item"), ("cate_id", "hist_cate")):
        index = {}
        lists = [[index.setdefault(v, len(index) + 1) for v in joined.split("^")] for joined in data[history]]
        features[name] = np.array([index.setdefault(str(v), len(index) + 1) for v in data[name]])
        padded = np.zeros((len(lists), HISTORY), dtype=np.int64)
        for row, values in zip(padded, lists, strict=True):
            row[: len(values)] = values[:HISTORY]
        features["hist_" + name] = padded
        sizes[name] = len(index) + 1
    features["seq_length"] = np.array([min(len(v), HISTORY) for v in lists])
    return features, data["label"].to_numpy(), sizes, len(train)


def model(task, sizes):
    from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
    from deepctr_torch.models import DCN, DIN, DeepFM

    name, _, norm = task.partition("_")
    common = dict(dnn_hidden_units=TOWER, l2_reg_embedding=0, dnn_use_bn=norm == "bn", device="cpu")
    if name == "din":
        columns = [SparseFeat(n, sizes[n], embedding_dim=EMBEDDING) for n in ("user_id", "item_id", "cate_id")]
        for n in ("item_id", "cate_id"):
            feature = SparseFeat("hist_" + n, sizes[n], embedding_dim=EMBEDDING, embedding_name=n)
            columns.append(VarLenSparseFeat(feature, HISTORY, length_name="seq_length"))
        return DIN(columns, ["item_id", "cate_id"], att_hidden_size=UNIT, att_activation="relu", **common)
    columns = [SparseFeat(c, sizes[c], embedding_dim=EMBEDDING) for c in CATEGORIES] + [
        DenseFeat(c, 1) for c in NUMBERS
    ]
    if name == "deepfm":
        return DeepFM(columns, columns, l2_reg_linear=0, **common)
    return DCN(
        columns, columns, cross_num=3, cross_parameterization="vector", l2_reg_linear=0, l2_reg_cross=0, **common
    )


def train(task, world, seed):
    settle(seed)
    with Memory() as memory:
        with (folder() / f"deepctr_{world}.pickle").open("rb") as file:
            features, labels, sizes, cut = pickle.load(file)
        net = model(task, sizes)
        first, rest = ({k: v[part] for k, v in features.items()} for part in (slice(cut), slice(cut, None)))
        net.compile(torch.optim.Adam(net.parameters(), lr=RATE), "binary_crossentropy")
        with StepClock() as clock:
            net.fit(first, labels[:cut], batch_size=BATCH, epochs=1, verbose=0, shuffle=True)
        trained = memory.peak
        scores, noise = timed(lambda: net.predict(rest, batch_size=8192))
    emit(
        **clock.figures(cut / len(clock.times)),
        evaluate_rows_per_s=len(scores) / noise.seconds,
        evaluate_other_cpu=noise.other,
        auc=auc(labels[cut:], scores),
        memory_mb=memory.megabytes,
        training_memory_mb=(trained - memory.base) / 2**20,
    )


def family(task, sizes):
    from deepctr_torch import models
    from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat

    plain = dict(l2_reg_embedding=0, device="cpu")
    wide, deep = plain | dict(l2_reg_linear=0), dict(dnn_hidden_units=TOWER)
    tasks = wide | dict(
        task_types=["binary"] * 2, task_names=["label", "conversion"], tower_dnn_hidden_units=TASK_TOWER
    )
    experts = tasks | dict(expert_dnn_hidden_units=EXPERT, gate_dnn_hidden_units=())
    if task.startswith("dien"):
        names = ("item_id", "cate_id")
        columns = [SparseFeat(n, sizes[n], embedding_dim=EMBEDDING) for n in ("user_id", *names)]
        for n in names:
            for history in ("hist_", "neg_hist_") if task == "dien_aux" else ("hist_",):
                feature = SparseFeat(history + n, sizes[n], embedding_dim=EMBEDDING, embedding_name=n)
                columns.append(VarLenSparseFeat(feature, HISTORY, length_name="seq_length"))
        unit = dict(att_hidden_units=UNIT, att_activation="relu", gru_type="AUGRU", use_negsampling=task == "dien_aux")
        return models.DIEN(columns, list(names), **unit, **plain, **deep)
    f = [SparseFeat(c, sizes[c], embedding_dim=EMBEDDING) for c in CATEGORIES]
    match task:
        case "wide_deep":
            return models.WDL(f, f, **wide, **deep)
        case "pnn":
            return models.PNN(f, **plain, **deep)
        case "nfm":
            return models.NFM(f, f, **wide, **deep)
        case "afm":
            return models.AFM(f, f, attention_factor=FACTOR, l2_reg_att=0, **wide)
        case "xdeepfm":
            cin = dict(cin_layer_size=MAPS, cin_split_half=False, cin_activation="linear")
            return models.xDeepFM(f, f, **cin, **wide, **deep)
        case "autoint":
            return models.AutoInt(f, f, att_layer_num=CROSSES, att_head_num=HEADS, **plain, **deep)
        case "fibinet":
            return models.FiBiNET(f, f, **wide, **deep)
        case "dcn_v2":
            return models.DCN(f, f, CROSSES, "matrix", l2_reg_cross=0, **wide, **deep)
        case "dcn_mix":
            mixture = dict(cross_num=CROSSES, low_rank=RANK, num_experts=EXPERTS, l2_reg_cross=0)
            return models.DCNMix(f, f, **mixture, **wide, **deep)
        case "shared_bottom":
            return models.SharedBottom(f, bottom_dnn_hidden_units=TOWER[:2], **tasks)
        case "mmoe":
            return models.MMOE(f, num_experts=EXPERTS, **experts)
        case "ple":
            return models.PLE(f, shared_expert_num=2, specific_expert_num=2, num_levels=2, **experts)
        case "esmm":
            return models.ESMM(f, **tasks | dict(tower_dnn_hidden_units=TOWER))


def steps(task, world, seed):
    settle(seed)
    with Memory() as memory:
        features, labels, second, sizes = for_steps("deepctr", task, world)
        if world == "M":
            labels = np.stack([labels, second], axis=1)
        net = family(task, sizes)
        loss = "binary_crossentropy" if world != "M" else ["binary_crossentropy"] * 2
        net.compile(torch.optim.Adam(net.parameters(), lr=RATE), loss)
        with StepClock(WARM, steps_of(task)) as clock:
            net.fit(features, labels, batch_size=BATCH, epochs=1, verbose=0, shuffle=True)
    emit(**clock.figures(), memory_mb=memory.megabytes)


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "prepare":
        with preparing(), (folder() / f"deepctr_{rest[0]}.pickle").open("wb") as file:
            pickle.dump(prepared(rest[0]), file, protocol=5)
    elif verb == "steps":
        steps(rest[0], rest[1], int(rest[2]))
    else:
        train(rest[0], rest[1], int(rest[2]))

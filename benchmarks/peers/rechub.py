"""torch-rechub in the benchmark, as its examples do it.

`prepare WORLD`, `train TASK WORLD SEED` (a whole epoch) and `steps TASK WORLD SEED` (some steps of a model of the family).
Its towers always have batch normalisation and its DIN attends without a mask, one unit a history column.
"""

import pickle
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
import torch  # noqa: F401  before the memory's base is taken
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
    from torch_rechub.utils.data import pad_sequences

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
        lists = [np.array(joined.split("^"), dtype=np.int64) for joined in data[history]]
        flat = np.concatenate(lists)
        encoder = LabelEncoder().fit(np.concatenate([data[name].to_numpy(), flat]))
        features[name] = encoder.transform(data[name].to_numpy()) + 1
        codes = np.split(encoder.transform(flat) + 1, np.cumsum([len(v) for v in lists])[:-1])
        features["hist_" + name] = pad_sequences(codes, maxlen=HISTORY, padding="post", truncating="post")
        sizes[name] = len(encoder.classes_) + 1
    return features, data["label"].to_numpy(), sizes, len(train)


def model(task, sizes):
    from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
    from torch_rechub.models.ranking import DCN, DIN, DeepFM

    tower = {"dims": TOWER, "dropout": 0.0, "activation": "relu"}
    if task == "din":
        names = ("item_id", "cate_id")
        user = [SparseFeature("user_id", sizes["user_id"], embed_dim=EMBEDDING)]
        target = [SparseFeature(n, sizes[n], embed_dim=EMBEDDING, padding_idx=0) for n in names]
        history = [
            SequenceFeature("hist_" + n, sizes[n], embed_dim=EMBEDDING, pooling="concat", shared_with=n, padding_idx=0)
            for n in names
        ]
        unit = {"dims": UNIT, "activation": "relu"}
        return DIN(user, history, target, mlp_params={"dims": TOWER}, attention_mlp_params=unit)
    dense = [DenseFeature(c) for c in NUMBERS]
    sparse = [SparseFeature(c, vocab_size=sizes[c], embed_dim=EMBEDDING) for c in CATEGORIES]
    if task == "deepfm":
        return DeepFM(deep_features=dense + sparse, fm_features=sparse, mlp_params=tower)
    return DCN(features=dense + sparse, n_cross_layers=3, mlp_params=tower)


def train(task, world, seed):
    from torch_rechub.trainers import CTRTrainer
    from torch_rechub.utils.data import DataGenerator

    settle(seed)
    with Memory() as memory:
        with (folder() / f"rechub_{world}.pickle").open("rb") as file:
            features, labels, sizes, cut = pickle.load(file)
        net = model(task, sizes)
        first, rest = ({k: v[part] for k, v in features.items()} for part in (slice(cut), slice(cut, None)))
        loader, _, _ = DataGenerator(first, labels[:cut]).generate_dataloader(
            x_val=rest, y_val=labels[cut:], x_test=rest, y_test=labels[cut:], batch_size=BATCH
        )
        _, _, test = DataGenerator(first, labels[:cut]).generate_dataloader(
            x_val=rest, y_val=labels[cut:], x_test=rest, y_test=labels[cut:], batch_size=8192
        )
        trainer = CTRTrainer(net, optimizer_params={"lr": RATE}, n_epoch=1, device="cpu", model_path=str(folder()))
        with StepClock() as clock:
            trainer.fit(loader)
        trained = memory.peak
        scores, noise = timed(lambda: trainer.predict(trainer.model, test))
    emit(
        **clock.figures(cut / len(clock.times)),
        evaluate_rows_per_s=len(scores) / noise.seconds,
        evaluate_other_cpu=noise.other,
        auc=auc(labels[cut:], scores),
        memory_mb=memory.megabytes,
        training_memory_mb=(trained - memory.base) / 2**20,
    )


def family(task, sizes):
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models import multi_task, ranking

    def layers(hidden):
        return {"dims": hidden, "dropout": 0.0, "activation": "relu"}

    deep, two = {"mlp_params": layers(TOWER)}, ["classification"] * 2
    experts = {"expert_params": layers(EXPERT), "tower_params_list": [layers(TASK_TOWER)] * 2}
    bottom = {"bottom_params": layers(TOWER[:2]), "tower_params_list": [layers(TASK_TOWER)] * 2}
    if task in ("dien_aux", "bst"):
        names, padded = ("item_id", "cate_id"), {"embed_dim": EMBEDDING, "padding_idx": 0}
        user = [SparseFeature("user_id", sizes["user_id"], embed_dim=EMBEDDING)]
        target = [SparseFeature(n, sizes[n], **padded) for n in names]
        history, negative = (
            [SequenceFeature(of + n, sizes[n], pooling="concat", shared_with=n, **padded) for n in names]
            for of in ("hist_", "neg_hist_")
        )
        if task == "bst":
            return ranking.BST(user, history, target, nhead=8, dropout=0.0, max_seq_len=HISTORY + 1, **deep)
        return ranking.DIEN(user, history, negative, target, {"dims": TOWER, "dropout": 0.0}, alpha=1.0)
    f = [SparseFeature(c, vocab_size=sizes[c], embed_dim=EMBEDDING) for c in CATEGORIES]
    match task:
        case "wide_deep":
            return ranking.WideDeep(f, f, **deep)
        case "afm":
            return ranking.AFM(f, EMBEDDING, t=FACTOR)
        case "autoint":
            return ranking.AutoInt(f, [], num_layers=CROSSES, num_heads=HEADS, **deep)
        case "fibinet":
            return ranking.FiBiNet(f, **deep)
        case "dcn_v2":
            return ranking.DCNv2(f, CROSSES, use_low_rank_mixture=False, **deep)
        case "dcn_mix":
            return ranking.DCNv2(f, CROSSES, low_rank=RANK, num_experts=EXPERTS, **deep)
        case "shared_bottom":
            return multi_task.SharedBottom(f, two, **bottom)
        case "mmoe":
            return multi_task.MMOE(f, two, EXPERTS, **experts)
        case "ple":
            return multi_task.PLE(f, two, 2, 2, 2, **experts)
        case "esmm":
            return multi_task.ESMM(f[:13], f[13:], layers(TOWER), layers(TOWER))
        case "aitm":
            return multi_task.AITM(f, 2, **bottom)


def steps(task, world, seed):
    from torch_rechub.trainers import CTRTrainer, MTLTrainer
    from torch_rechub.utils.data import DataGenerator

    settle(seed)
    with Memory() as memory:
        features, labels, second, sizes = for_steps("rechub", task, world)
        if world == "M":
            labels = np.stack([second, labels, second] if task == "esmm" else [labels, second], axis=1)
        if world != "A":
            features = {c: features[c] for c in CATEGORIES}
        net = family(task, sizes)
        few = {k: v[:2] for k, v in features.items()}
        loader, *_ = DataGenerator(features, labels).generate_dataloader(
            x_val=few, y_val=labels[:2], x_test=few, y_test=labels[:2], batch_size=BATCH
        )
        common = dict(optimizer_params={"lr": RATE}, n_epoch=1, device="cpu", model_path=str(folder()))
        if world == "M":
            trainer = MTLTrainer(net, ["classification"] * labels.shape[1], **common)
        else:
            trainer = CTRTrainer(net, loss_mode=task != "dien_aux", **common)
        with StepClock(WARM, steps_of(task)) as clock:
            trainer.train_one_epoch(loader)
    emit(**clock.figures(), memory_mb=memory.megabytes)


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "prepare":
        with preparing(), (folder() / f"rechub_{rest[0]}.pickle").open("wb") as file:
            pickle.dump(prepared(rest[0]), file, protocol=5)
    elif verb == "steps":
        steps(rest[0], rest[1], int(rest[2]))
    else:
        train(rest[0], rest[1], int(rest[2]))

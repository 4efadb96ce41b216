"""FuxiCTR in the benchmark.

`prepare WORLD`, `train TASK WORLD SEED` (a whole epoch) and `steps TASK WORLD SEED` (some steps of a model of the family).
Its models are not in its package: FUXICTR_SRC is a folder with `model_zoo` as in its repository. `fit` always evaluates, saves
and reloads a checkpoint; that is left out of the training time. It embeds numbers, so its towers are wider on data B.

On a GPU its loader (Ray, or rows one by one in Python) would be all that is measured, so there all rows lie on the GPU before
the clock starts and batches are cut from them (`Fed`): it has no loading at all, which is more than its users get.
"""

import importlib.util
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from clock import (
    BATCH,
    CATEGORIES,
    CROSSES,
    DEVICE,
    EMBEDDING,
    EXPERTS,
    FACTOR,
    FFM_WIDTH,
    HEADS,
    HISTORY,
    MAPS,
    NUMBERS,
    RANK,
    RATE,
    TOWER,
    UNIT,
    WARM,
    Memory,
    StepClock,
    auc,
    emit,
    folder,
    preparing,
    rows_of,
    settle,
    steps_of,
    timed,
)

FAMILY = {  # file, and what its options are called there
    "lr": ("LR/src/LR.py", {}),
    "fm": ("FM/src/FM.py", {}),
    "ffm": ("FFM/src/FFMv2.py", {"embedding_dim": FFM_WIDTH}),
    "fwfm": ("FwFM/src/FwFM.py", {}),
    "wide_deep": ("WideDeep/WideDeep_torch/src/WideDeep.py", {}),
    "pnn": ("PNN/src/PNN.py", {}),
    "nfm": ("NFM/src/NFM.py", {}),
    "afm": ("AFM/src/AFM.py", {"attention_dim": FACTOR}),
    "xdeepfm": ("xDeepFM/src/xDeepFM.py", {"cin_hidden_units": MAPS}),
    "autoint": (
        "AutoInt/src/AutoInt.py",
        {"attention_layers": CROSSES, "num_heads": HEADS, "attention_dim": EMBEDDING},
    ),
    "fibinet": ("FiBiNET/src/FiBiNET.py", {}),
    "dcn_v2": ("DCNv2/src/DCNv2.py", {"parallel_dnn_hidden_units": TOWER}),
    "dcn_mix": (
        "DCNv2/src/DCNv2.py",
        {"parallel_dnn_hidden_units": TOWER, "use_low_rank_mixture": True, "low_rank": RANK, "num_experts": EXPERTS},
    ),
    "fgcnn": (
        "FGCNN/src/FGCNN.py",
        {
            **{"channels": [14, 16], "kernel_heights": [7, 7], "pooling_sizes": [2, 2]},
            "recombined_channels": [3, 3],
        },
    ),
    "deep_crossing": ("DeepCrossing/src/DeepCrossing.py", {"residual_blocks": TOWER}),
}
ZOO = {
    **{"din": "DIN/src/DIN.py", "deepfm": "DeepFM/DeepFM_torch/src/DeepFM.py", "dcn": "DCN/DCN_torch/src/DCN.py"},
    **{name: path for name, (path, _) in FAMILY.items()},
}


def prepare(world):
    from fuxictr.preprocess import FeatureProcessor, build_dataset

    root = folder() / "fuxictr"
    shutil.rmtree(root / world, ignore_errors=True)
    text = dict(active=True, dtype="str")
    if world == "B":
        columns = [
            dict(name=NUMBERS, active=True, dtype="float", type="numeric", normalizer="MinMaxScaler"),
            dict(name=CATEGORIES, type="categorical", **text),
        ]
    else:
        columns = [dict(name=["user_id", "item_id", "cate_id"], type="categorical", **text)]
        for name, of in (("hist_item", "item_id"), ("hist_cate", "cate_id")):
            history = dict(type="sequence", splitter="^", max_len=HISTORY, share_embedding=of, feature_encoder=None)
            columns.append(dict(name=name, **history, **text))
    label = {"name": "label", "dtype": "float"}
    processor = FeatureProcessor(feature_cols=columns, label_col=label, dataset_id=world, data_root=str(root))
    files = {"train_data": str(folder() / f"{world}_train.csv"), "valid_data": str(folder() / f"{world}_test.csv")}
    build_dataset(processor, **files, data_format="csv", min_categr_count=1)


def model(name, feature_map, parameters):
    path = Path(os.environ["FUXICTR_SRC"]) / "model_zoo" / ZOO[name]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, path.stem)(feature_map, **parameters)


def settings(task, world, seed):
    root, norm = folder() / "fuxictr", task.endswith("_bn")
    return dict(
        **dict(
            model_id=task,
            dataset_id=world,
            loss="binary_crossentropy",
            metrics=["AUC"],
            monitor="AUC",
            optimizer="adam",
        ),
        **dict(task="binary_classification", learning_rate=RATE, embedding_dim=EMBEDDING, batch_size=BATCH, epochs=1),
        **dict(shuffle=True, verbose=0, num_workers=1, model_root=str(root), seed=seed, embedding_regularizer=0),
        gpu=0 if DEVICE == "cuda" else -1,
        **dict(net_regularizer=0, net_dropout=0, batch_norm=norm, hidden_units=TOWER, hidden_activations="relu"),
        **dict(dnn_hidden_units=TOWER, dnn_activations="relu", num_cross_layers=3, attention_hidden_units=UNIT),
        **dict(attention_hidden_activations="relu", din_target_field=[("item_id", "cate_id")]),
        din_sequence_field=[("hist_item", "hist_cate")],
    )


class Fed:
    """Batches cut from rows that lie on the GPU."""

    def __init__(self, path, rows, feature_map, shuffle=True):
        import numpy as np
        import pyarrow.parquet as pq

        table = pq.read_table(path).to_pandas()
        names = [*feature_map.features, *feature_map.labels]
        columns = {name: table[name].to_numpy() for name in names}
        whole = {n: np.stack(c) if c.dtype == object else c for n, c in columns.items()}
        self.columns = {n: torch.tensor(c, device=DEVICE) for n, c in whole.items()}
        self.rows, self.total, self.shuffle = rows, len(table), shuffle

    def __len__(self):
        return -(-self.total // self.rows)

    def __iter__(self):
        order = (torch.randperm if self.shuffle else torch.arange)(self.total, device=DEVICE)
        return ({n: c[part] for n, c in self.columns.items()} for part in order.split(self.rows))


def train(task, world, seed):
    name = task.partition("_")[0]
    root = folder() / "fuxictr"
    parameters = settings(task, world, seed)
    logging.basicConfig(level=logging.WARNING)
    settle(seed)
    with Memory() as memory:
        from fuxictr.features import FeatureMap
        from fuxictr.pytorch.dataloaders import RankDataLoader
        from fuxictr.pytorch.torch_utils import seed_everything

        seed_everything(seed)
        feature_map = FeatureMap(world, str(root / world))
        feature_map.load(str(root / world / "feature_map.json"), parameters)
        files = dict(train_data=str(root / world / "train.parquet"), valid_data=str(root / world / "valid.parquet"))
        net = model(name, feature_map, parameters)
        if DEVICE == "cuda":
            first, rest = (Fed(path, BATCH, feature_map) for path in files.values())
        else:
            loaders = RankDataLoader(feature_map, stage="train", data_format="parquet", **files, **parameters)
            first, rest = loaders if isinstance(loaders, tuple) else loaders.make_iterator()
        net.eval_step = lambda: None
        net.load_weights = lambda *_: None
        with StepClock() as clock:
            net.fit(first, validation_data=rest, epochs=1)
        trained = memory.peak
        if DEVICE == "cuda":
            rest = Fed(files["valid_data"], 8192, feature_map, shuffle=False)
        else:
            big = RankDataLoader(
                feature_map, stage="train", data_format="parquet", **files, **{**parameters, "batch_size": 8192}
            )
            _, rest = big if isinstance(big, tuple) else big.make_iterator()
        scores, noise = timed(lambda: net.predict(rest))
    import pyarrow.parquet as pq

    labels = pq.read_table(files["valid_data"], columns=["label"])["label"].to_numpy()
    rows = pq.ParquetFile(files["train_data"]).metadata.num_rows
    emit(
        **clock.figures(rows / len(clock.times)),
        evaluate_rows_per_s=len(scores) / noise.seconds,
        evaluate_other_cpu=noise.other,
        auc=auc(labels, scores),
        memory_mb=memory.megabytes,
        training_memory_mb=(trained - memory.base) / 2**20,
    )


def steps(task, world, seed):
    assert world == "F", world
    parameters = settings(task, "B", seed) | FAMILY[task][1]
    root = folder() / "fuxictr" / "B"
    logging.basicConfig(level=logging.WARNING)
    settle(seed)
    with Memory() as memory, tempfile.TemporaryDirectory() as scratch:
        import pyarrow as pa
        import pyarrow.parquet as pq
        from fuxictr.features import FeatureMap
        from fuxictr.pytorch.dataloaders import RankDataLoader
        from fuxictr.pytorch.torch_utils import seed_everything

        seed_everything(seed)
        feature_map = FeatureMap("B", str(root))
        feature_map.load(str(root / "feature_map.json"), parameters | {"use_features": CATEGORIES})
        feature_map.num_fields = len(CATEGORIES)  # the file's count includes the numbers
        first = pq.ParquetFile(root / "train.parquet").iter_batches(rows_of(task))
        pq.write_table(pa.Table.from_batches([next(first)]), f"{scratch}/train.parquet")
        files = dict(train_data=f"{scratch}/train.parquet", valid_data=f"{scratch}/train.parquet")
        net = model(task, feature_map, parameters)
        loaders = RankDataLoader(feature_map, stage="train", data_format="parquet", **files, **parameters)
        first, rest = loaders if isinstance(loaders, tuple) else loaders.make_iterator()
        with StepClock(WARM, steps_of(task)) as clock:
            net.fit(first, validation_data=rest, epochs=1)
    emit(**clock.figures(), memory_mb=memory.megabytes)


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "prepare":
        with preparing():
            prepare(rest[0])
    elif verb == "steps":
        steps(rest[0], rest[1], int(rest[2]))
    else:
        train(rest[0], rest[1], int(rest[2]))

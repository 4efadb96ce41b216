"""FuxiCTR in the benchmark: `prepare WORLD` and `train TASK WORLD SEED`.

Its models are not in its package: FUXICTR_SRC is a folder with `model_zoo` as in its repository. `fit` always evaluates, saves
and reloads a checkpoint; that is left out of the training time. It embeds numbers, so its towers are wider on data B.
"""

import importlib.util
import logging
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch  # noqa: F401  before the memory's base is taken
from clock import (
    BATCH,
    CATEGORIES,
    EMBEDDING,
    HISTORY,
    NUMBERS,
    RATE,
    TOWER,
    UNIT,
    Memory,
    StepClock,
    auc,
    emit,
    folder,
    preparing,
    settle,
    timed,
)

ZOO = {"din": "DIN/src/DIN.py", "deepfm": "DeepFM/DeepFM_torch/src/DeepFM.py", "dcn": "DCN/DCN_torch/src/DCN.py"}


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


def train(task, world, seed):
    name, _, norm = task.partition("_")
    root = folder() / "fuxictr"
    parameters = dict(
        **dict(
            model_id=task,
            dataset_id=world,
            loss="binary_crossentropy",
            metrics=["AUC"],
            monitor="AUC",
            optimizer="adam",
        ),
        **dict(task="binary_classification", learning_rate=RATE, embedding_dim=EMBEDDING, batch_size=BATCH, epochs=1),
        **dict(
            shuffle=True, verbose=0, num_workers=1, model_root=str(root), gpu=-1, seed=seed, embedding_regularizer=0
        ),
        **dict(
            net_regularizer=0, net_dropout=0, batch_norm=norm == "bn", hidden_units=TOWER, hidden_activations="relu"
        ),
        **dict(dnn_hidden_units=TOWER, dnn_activations="relu", num_cross_layers=3, attention_hidden_units=UNIT),
        **dict(attention_hidden_activations="relu", din_target_field=[("item_id", "cate_id")]),
        din_sequence_field=[("hist_item", "hist_cate")],
    )
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
        loaders = RankDataLoader(feature_map, stage="train", data_format="parquet", **files, **parameters)
        first, rest = loaders if isinstance(loaders, tuple) else loaders.make_iterator()
        net.eval_step = lambda: None
        net.load_weights = lambda *_: None
        with StepClock() as clock:
            net.fit(first, validation_data=rest, epochs=1)
        trained = memory.peak
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


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "prepare":
        with preparing():
            prepare(rest[0])
    else:
        train(rest[0], rest[1], int(rest[2]))

"""Records made by hand, whose numbers are known, through the tables."""

from functools import partial
from unittest import mock

import pandas as pd
import pytest
from scipy import stats

from lib import UserError, claims, data, methods, tables
from lib.experiment import VERSION, Cell, Record
from lib.profile import ROOT

REPORT = {"empty_layers": [], "collapsed": False, "effective_compression": 1.0, "kept": {}, "sizes": {}}


def cell(method="SNIP", ratio=32, dataset="mnist", model="cnn", seed=42, rate=1e-3, epochs=2):
    return Cell(dataset, model, method, ratio, seed, epochs, rate)


def record(of, top1=(1000, 9000, 8000), top5=(5000, 9500, 9400), achieved=None, released=None, **run):
    history = [{"epoch": epoch, "train_loss": None, "test_loss": 1.0, "top1": one, "top5": five}
               for epoch, (one, five) in enumerate(zip(top1, top5, strict=True))]
    report = REPORT | {"compression": achieved or of.compression,
                       "compression_released": released or of.compression}
    history = history if of.epochs else []
    return Record(of.key, VERSION, of, report, history, 10_000, {"precision": "float32"} | run)


def grid(top1, model="cnn", dataset="mnist", ratios=(32, 64), readings=("", "@run"), errors=None):
    """One cell per method of `top1` (percent at every ratio), reading and ratio; `errors` too in percent."""
    return tables.frame(
        record(cell(base + reading, ratio, dataset, model), [round(100 * value)] * 3, achieved=ratio * shrink,
               released=ratio * shrink)
        for base, value in top1.items() for reading in readings for ratio in ratios
        for shrink in [1 + (errors or {}).get(base, 0) / 100])


def verdict(frame, text, reading="run"):
    [claim] = [claim for claim in claims.CLAIMS if text in claim.text]
    return claims.judge(claim, frame, reading)[1]


def closed(frame, **since):
    """The same cells, whose masks let nothing pass from these ratios on."""
    ratio = frame["base"].map(since).astype(float)
    return frame.assign(collapsed=frame["compression"] >= ratio)


def test_the_factor_is_that_of_79_batches_of_128():
    assert tables.thesis_factor(10_000) == 10_000 / (79 * 128)
    assert tables.thesis_factor(256) == 1


def test_accuracies_in_both_accountings():
    row = tables.frame([record(cell())]).iloc[0]
    assert (row["top1"], row["top5"]) == (80, 94)
    assert row["top1_thesis"] == pytest.approx(90 * 0.98892, abs=1e-3)


def test_the_best_epoch_may_be_the_untrained_network():
    row = tables.frame([record(cell(), top1=(1500, 1000, 1100))]).iloc[0]
    assert row["top1_thesis"] == 15 * tables.thesis_factor(10_000)


def test_masks_only_have_no_accuracy():
    row = tables.frame([record(cell(epochs=0))]).iloc[0]
    assert row["done"] and pd.isna(row["top1"]) and row["compression_achieved"] == 32


def test_a_frame_of_cells_has_a_row_for_each():
    cells = [cell("SNIP"), cell("OBD")]
    frame = tables.frame([record(cells[0]), record(cell("LAMP"))], cells)
    assert frame["method"].tolist() == ["SNIP", "OBD"] and frame["done"].tolist() == [True, False]


def test_the_thesis_has_208_numbers_of_which_24_are_chance():
    numbers = tables.thesis()
    assert numbers[["top1", "top5"]].notna().to_numpy().sum() == 208
    assert numbers["top1"].isin([9.89, 0.99]).sum() == 24
    chosen = numbers.query("table == '4.4' and dataset == 'cifar10' and method == 'SynFlow'").iloc[0]
    assert (chosen["top5"], chosen["top1"], chosen["starred"]) == (96.97, 69.73, 1)


@pytest.mark.parametrize("method, dense", [
    ("LAMP", "Dense"), ("SNIP", "Dense@variance_scaling"), ("SNIP@run", "Dense@xavier_normal")])
def test_r_1_is_the_dense_network_of_the_methods_initialisation(method, dense):
    names = ["Dense", "Dense@variance_scaling", "Dense@xavier_normal"]
    tops = {name: (0, 0, 1000 * place) for place, name in enumerate(names)}
    records = [record(cell(name, 1), tops[name]) for name in names]
    rows = tables.expand(tables.frame([record(cell(method)), *records]))
    assert set(rows["method"]) == {method}
    assert rows.loc[rows["compression"] == 1, "top1"].tolist() == [tops[dense][-1] / 100]


def test_dense_cells_serve_their_own_seed_and_rate_only():
    rows = tables.expand(tables.frame([record(cell("LAMP")), record(cell("Dense", 1, seed=43)),
                                       record(cell("Dense", 1, rate=1e-4))]))
    assert rows["compression"].tolist() == [32]


def test_recipes_are_not_mixed():
    frame = tables.frame([record(cell()), record(cell(rate=1e-4))])
    with pytest.raises(UserError, match="mix several values of learning_rate"):
        tables.select(frame, "mnist", "cnn")


def test_interval_is_students():
    values = [80, 82, 87]
    records = [record(cell(seed=seed), (0, 0, 100 * top)) for seed, top in enumerate(values)]
    found = tables.summary(tables.frame(records), "top1").iloc[0]
    low, high = stats.t.interval(0.95, 2, loc=83, scale=stats.sem(values))
    assert (found["mean"], found["seeds"]) == (83, 3)
    assert found["half"] == pytest.approx((high - low) / 2)


def test_coverage_counts_the_dense_cell_once():
    frame = tables.frame([record(cell("LAMP")), record(cell("Dense", 1))])
    assert tables.coverage(frame, ["LAMP", "GlobalMag"], [1, 32], "top1") == (2, 3)
    two = tables.frame(record(cell(*of, seed=seed)) for of in (("LAMP", 32), ("Dense", 1)) for seed in (1, 2))
    assert tables.coverage(two, ["LAMP", "GlobalMag"], [1, 32], "top1") == (4, 6)


def test_the_factor_is_that_of_the_test_images_there_are():
    rows = tables.frame([record(cell())])
    assert tables.factor_of(rows, "run") == tables.factor_of(rows.iloc[:0], "run") == 10_000 / (79 * 128)
    assert tables.factor_of(rows.assign(test_images=300), "run") == 300 / 384
    assert tables.factor_of(rows, "published") == tables.factor_of(rows, "written") == 1


def test_the_audit_of_a_mask_stands_in_its_row():
    of = record(cell(), achieved=31, released=33)
    of.report |= {"empty_layers": ["a", "b"], "effective_compression": 40.0, "collapsed": True}
    row = tables.frame([of]).iloc[0]
    assert row["empty_layers"] == 2 and row["collapsed"] and row["effective_compression"] == 40
    assert row[["compression", "compression_achieved", "compression_released"]].tolist() == [32, 31, 33]


def test_stand_ins_play_a_part_only_where_the_real_set_is_not():
    assert tables.dataset_for(["digits/cnn"], "cnn") == "digits"
    assert tables.dataset_for(["digits/cnn", "mnist/cnn"], "cnn") == "mnist"
    assert tables.dataset_for({"shapes10/vgg16": 1}, "vgg16", 100) == "cifar100"


def test_the_tables_take_the_thesis_ratios_or_the_two_largest():
    assert tables.high_ratios([1, 2, 32, 64]) == (32, 64) == tables.high_ratios([32, 64, 128])
    assert tables.high_ratios([1, 4, 8, 16]) == (8, 16) and tables.high_ratios([4, 8]) == (4, 8)
    assert tables.high_ratios([8]) == (32, 64)


def lines(table):
    body = table.body.set_axis(table.header, axis=1)
    return body.set_index([name for name in ("Data set", "r", "Method") if name in body])


def test_table_sets_ours_beside_the_thesis():
    records = [record(cell("SNIP@run", 32, "cifar10", "vgg16"), achieved=31.5)]
    table = tables.accuracy_table(tables.frame(records), "vgg16", 32)
    row = lines(table).loc[("CIFAR-10", "SNIP")]
    assert row[["Top-1 printed", "Top-1 corrected"]].tolist() == ["56.00", "56.63"]
    assert row[["Top-1 @run as printed", "Top-1 @run"]].tolist() == ["89.00", "80.00"]
    assert row[["Top-1 @written", "Top-1 published", "Compression @run"]].tolist() == ["–", "–", "31.50"]
    assert "CIFAR-10: 1 of 30 cells, 2 epochs" in table.caption
    assert "CIFAR-100: 0 of 30 cells." in table.caption


def test_table_leaves_empty_what_does_not_exist_and_stars_what_the_thesis_stars():
    rows = lines(tables.accuracy_table(tables.frame([record(cell("LAMP", 64, "cifar10", "vgg16"))]), "vgg16", 64))
    assert rows.loc[("CIFAR-10", "LAMP"), "Top-5 @written"] == ""
    assert rows.loc[("CIFAR-100", "OBD"), "Top-5 printed"] == ""
    grasp = rows.loc[("CIFAR-10", "GraSP")]
    assert (grasp["Top-5 printed"], grasp["Top-5 corrected"]) == ("88.55*", "89.54")


def test_table_of_mnist_has_no_column_of_the_thesis():
    table = tables.accuracy_table(grid({"SNIP": 50}), "cnn", 32, 64)
    assert len(table.body) == 28 and not {"Top-1 printed", "Top-1 corrected"} & set(table.header)


def test_table_says_how_many_seeds():
    records = [record(cell("LAMP", seed=seed), (0, 0, 8000 + seed)) for seed in (42, 43, 44)]
    table = tables.accuracy_table(tables.frame(records), "cnn", 32)
    assert "3 seeds (42, 43, 44)" in table.caption
    assert lines(table).loc[("MNIST", "LAMP"), "Top-1 published"] == "80.43 ± 0.02"


def test_stand_ins_divergence_and_precision_are_told():
    frame = tables.frame([record(cell("LAMP", dataset="digits"), diverged=1, precision="bf16")])
    caption = tables.accuracy_table(frame, "cnn", 32).caption
    assert "stand-in for MNIST" in caption
    assert "1 cells diverged, 1 cells trained in bf16" in caption
    assert "stand-in" in claims.claims_table(frame).caption


def test_a_number_of_another_readings_training_is_marked_and_no_other():
    records = [record(cell(name, ratio, "cifar10", "resnet56", seed=seed),
                      **({"trained_as": "LAMP@run"} if (name, seed, ratio) == ("LAMP", 43, 32) else {}))
               for name in ("LAMP", "LAMP@run", "LayerMag", "SNIP") for seed in (42, 43) for ratio in (32, 64)]
    frame = tables.frame(records)
    assert frame["trained_as"].dropna().tolist() == ["LAMP@run"]
    table = tables.accuracy_table(frame, "resnet56", 32)
    marked = [(method, column) for (_, method), row in lines(table).iterrows() for column in row.index
              if "†" in row[column]]
    assert marked == [("LAMP", "Top-5 published"), ("LAMP", "Top-1 published")]
    assert lines(table).loc[("CIFAR-10", "LAMP"), "Top-1 published"] == "80.00 ± 0.00†"
    assert table.caption.count("†") == 1 and tables.SHOWN in table.caption and r"0.00$\dagger$" in table.latex()
    other = tables.accuracy_table(frame, "resnet56", 64)
    assert "†" not in other.caption and "†" not in other.csv()
    whole = tables.accuracy_table(tables.frame([record(cell("SynFlow@run", 32, "cifar10", "resnet56"), trained_as="Dense")]),
                                  "resnet56", 32)
    line = lines(whole).loc[("CIFAR-10", "SynFlow")]
    assert [column for column in line.index if "†" in line[column]] == [
        "Top-5 @run as printed", "Top-5 @run", "Top-1 @run as printed", "Top-1 @run"]


def test_a_method_of_ones_own_gets_its_row(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "Mine", methods.Method("Mine", "magnitude"))
    rows = lines(tables.accuracy_table(tables.frame([record(cell("Mine"))]), "cnn", 32))
    assert rows.loc[("MNIST", "Mine"), "Top-1 published"] == "80.00"


def test_saved_twice_the_bytes_are_the_same(tmp_path):
    for name in ("a", "b"):
        tables.save(tables.accuracy_table(grid({"SNIP": 50}), "cnn", 32), tmp_path / name / "table-4.2")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["table-4.2.csv", "table-4.2.md", "table-4.2.tex"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_csv_is_read_back(tmp_path):
    tables.save(tables.accuracy_table(grid({"SNIP": 50}), "cnn", 32), tmp_path / "t")
    back = pd.read_csv(tmp_path / "t.csv").set_index("Method")
    assert back.loc["SNIP", "Top-1 published"] == 50 and pd.isna(back.loc["LAMP", "Top-1 published"])


def test_latex_is_escaped_and_groups_its_columns():
    body = pd.DataFrame([["50 %", "a_b ± 1"]], columns=pd.MultiIndex.from_tuples([("G", "x"), ("G", "y")]))
    text = tables.Table("5 % & more", body).latex()
    assert r"\caption{5 \% \& more}" in text and r"50 \% & a\_b $\pm$ 1 \\" in text
    assert r"\multicolumn{2}{c}{G} \\" in text and r"\cmidrule(lr){1-2}" in text


def test_latex_of_many_columns_is_shrunk_to_the_page_and_pdflatex_knows_its_letters():
    many = tables.Table("", pd.DataFrame([["1"] * 11], columns=list("abcdefghijk"))).latex()
    few = tables.Table("ρ", pd.DataFrame([["1"] * 10], columns=list("abcdefghij"))).latex()
    assert many.count(r"\resizebox{\textwidth}{!}{%") == many.count("\\end{tabular}}") == 1 and "resizebox" not in few
    assert r"\caption{$\rho$}" in few
    written = [path.read_text() for path in (ROOT / "outputs").glob("*/tables/*.tex")]
    assert written and all(map(str.isascii, written))


def test_markdown_escapes_its_bars():
    assert "| a\\|b |" in tables.Table("", pd.DataFrame({"x": ["a|b"]})).markdown()


def test_a_file_in_the_way_is_told_and_nothing_is_left(tmp_path):
    (tmp_path / "results").write_text("in the way")
    with pytest.raises(UserError, match="Cannot write"):
        tables.save(tables.Table("", pd.DataFrame({"x": ["1"]})), tmp_path / "results" / "table")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    tables.write(tmp_path / "file", "old")
    monkeypatch.setattr("os.replace", mock.Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left"):
        tables.write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_lets_nothing_be_removed_either_is_a_sentence(tmp_path, monkeypatch):
    refused = mock.Mock(side_effect=OSError(30, "Read-only file system"))
    for name in ("write_bytes", "unlink"):
        monkeypatch.setattr(f"pathlib.Path.{name}", refused)
    with pytest.raises(UserError, match="Cannot write .*: Read-only file system"):
        tables.write(tmp_path / "file", "new")


TOP = {base: 10 for base in tables.ORDER} | {"GraSP": 90, "OBD": 80, "GlobalGrad": 70, "SNIP": 60}


def test_top_four_and_collapse_of_the_others():
    assert verdict(grid(TOP), "top four") == "agrees"
    assert verdict(grid(TOP), "every other method has collapsed") == "agrees"
    assert verdict(grid(TOP | {"LAMP": 65}), "top four") == "disagrees"
    assert verdict(grid(TOP | {"LAMP": 15}), "every other method has collapsed") == "disagrees"


@pytest.mark.parametrize(("grasp", "obd", "shrink", "answer"), [
    (60, 60, 0.5, "agrees"), (60, 75, 0.5, "disagrees"), (5, 5, 0.5, "agrees"),
    (60, 60, 0.71, "disagrees"), (35, 35, 0.71, "agrees"),    # half way from 32 to 64, where the best other has 40
    (5, 5, 0.4, "disagrees")])                                # no other reached as little
def test_hessian_methods_are_asked_at_the_compression_that_they_reached(grasp, obd, shrink, answer):
    others = dict.fromkeys(tables.ORDER, 10)
    frame = pd.concat([grid(others | {"SNIP": 70}, ratios=(32,), errors=dict.fromkeys(claims.HESSIAN, -60)),
                       grid(others | {"GraSP": grasp, "OBD": obd}, ratios=(64,),
                            errors=dict.fromkeys(claims.HESSIAN, 100 * shrink - 100))])
    assert verdict(frame, "Hessian-based") == answer


def test_of_exact_masks_it_is_not_asked_whether_they_keep_more():
    assert verdict(grid(TOP), "Hessian-based", "published") == "does not arise"


def test_a_claim_about_a_place_tells_of_its_method_also_where_it_is_not_among_the_first():
    [claim] = [claim for claim in claims.CLAIMS if "VGG-16 on CIFAR-10 at r = 32" in claim.text]
    ranked = {base: 90 - 10 * place for place, base in enumerate(("LAMP", "Random", "LayerMag", "SNIP"))}
    frame = grid(dict.fromkeys(tables.THESIS, 20) | ranked, "vgg16", "cifar10")
    assert claims.judge(claim, frame, "published") == ("LAMP 90.00, Random 80.00, LayerMag 70.00; SNIP 60.00, place 4",
                                                       "disagrees")
    frame = grid(dict.fromkeys(tables.THESIS, 20) | {"SNIP": 60}, "vgg16", "cifar10")
    assert claims.judge(claim, frame, "published")[0].startswith("SNIP 60.00, ") and "place" not in claims.judge(
        claim, frame, "published")[0]


def test_a_tie_is_not_a_place_among_the_first():
    assert verdict(grid(TOP | {"SNIP": 10}), "top four") == "disagrees"


def test_chance_level_is_what_a_constant_answer_reaches_on_that_set():
    assert verdict(grid(TOP | {"LAMP": 11.35}), "every other method has collapsed") == "agrees"
    assert data.constant_answer("cifar100") == 1 and data.constant_answer("shapes10", "top5") == 50


def test_a_missing_cell_leaves_a_claim_undecided():
    frame = grid({base: value for base, value in TOP.items() if base != "LAMP"})
    assert verdict(frame, "top four") == "not decidable (13 of 14 cells)"


def test_missing_cells_are_counted_over_all_the_data_sets_of_a_claim():
    frame = grid(dict.fromkeys(tables.THESIS, 20), "vgg16", "cifar10")
    assert verdict(frame, "layer-wise ones survive") == "not decidable (26 of 104 cells)"


def test_no_cells_decide_nothing():
    assert claims.claims(tables.frame([]))["@run: verdict"].str.startswith("not decidable (0 of").all()


@pytest.mark.parametrize("error, answer", [(-60, "disagrees"), (-40, "agrees"), (-20, "disagrees")])
def test_under_pruning(error, answer):
    assert verdict(grid(TOP, errors={"GraSP": error}), "GraSP under-prunes by 30-50 %") == answer


def test_run_counts_values_and_published_masks():
    records = [record(cell(name, 32), achieved=32, released=20) for name in ("GraSP", "GraSP@run")]
    frame, text = tables.frame(records), "GraSP under-prunes by 30-50 %"
    assert verdict(frame, text) == "agrees" and verdict(frame, text, "published") == "does not arise"


def test_recovery_needs_both_methods():
    def frame(obd):
        return tables.frame(
            record(cell(f"{base}@run", ratio), released=ratio * (1 + error / 100))
            for base, errors in (("GraSP", (-50, -20)), ("OBD", (-40, obd)))
            for ratio, error in zip((2, 64), errors, strict=True))
    assert [verdict(frame(obd), "both start to recover") for obd in (-30, -38)] == ["agrees", "disagrees"]


@pytest.mark.parametrize("best, answer", [("SNIP", "agrees"), ("LAMP", "disagrees"), ("GraSP", "agrees")])
def test_best_of_a_table_leaves_starred_methods_apart(best, answer):
    top1 = dict.fromkeys(tables.THESIS, 20) | {"SNIP": 50} | {best: 60}
    assert verdict(grid(top1, "vgg16", "cifar10"), "CIFAR-10 at r = 32: SNIP is best") == answer


def cifar(top1, ratios=(32, 64)):
    return pd.concat([grid(top1, model, dataset, ratios) for model in ("vgg16", "resnet56")
                      for dataset in ("cifar10", "cifar100")], ignore_index=True)


def test_random_against_the_others():
    low = cifar(dict.fromkeys(tables.THESIS, 20) | {"Random": 30})
    high = cifar(dict.fromkeys(tables.THESIS, 20) | {"Random": 12})
    for text in ("Most methods lose", "rarely beat random", "surpassed by random"):
        assert (verdict(low, text), verdict(high, text)) == ("agrees", "disagrees")


def test_half_is_not_rarely():
    top1 = dict.fromkeys(tables.THESIS, 20) | {"Random": 30, "GlobalMag": 40, "LayerMag": 40}
    assert verdict(cifar(top1), "rarely beat random") == "disagrees"


@pytest.mark.parametrize("best, answer", [("SNIP", "agrees"), ("LAMP", "disagrees"), ("GraSP", "agrees")])
def test_the_most_consistent_has_the_best_mean_rank_grasp_apart(best, answer):
    top1 = dict.fromkeys(tables.THESIS, 20) | {"SNIP": 50} | {best: 60}
    assert verdict(cifar(top1), "SNIP is the most consistent over all ratios") == answer


@pytest.mark.parametrize("from_ratio, answer", [(4, "agrees"), (8, "agrees"), (16, "disagrees"), (128, "disagrees")])
def test_almost_at_once_is_by_r_8(from_ratio, answer):
    frame = tables.frame(record(cell("GraSP@run", ratio, "cifar100", "vgg16")) for ratio in (2, 4, 8, 16, 64))
    assert verdict(closed(frame, GraSP=from_ratio), "GraSP collapses almost at once") == answer


def by_ratio(model, dataset, top1):
    """`@run` cells of one network, by method and ratio."""
    return tables.frame(record(cell(f"{base}@run", ratio, dataset, model), [round(100 * value)] * 3)
                        for base, values in top1.items() for ratio, value in values.items())


@pytest.mark.parametrize("grasp, snip, answer", [(60, 62, "agrees"), (60, 70, "disagrees"), (9, 10, "disagrees")])
def test_as_good_as_snip_is_within_five_points_and_above_chance(grasp, snip, answer):
    frame = by_ratio("vgg16", "cifar10", {"GraSP": {32: 70, 64: grasp}, "SNIP": {32: snip, 64: 50}})
    assert verdict(frame, "GraSP is about as good as SNIP") == answer


@pytest.mark.parametrize("grasp, answer", [(30, "agrees"), (50, "disagrees")])
def test_grasp_is_compared_with_snip_at_half_the_ratio(grasp, answer):
    top1 = {"GraSP": dict.fromkeys((2, 4, 8), grasp), "SNIP": {2: 45, 4: 40, 8: 20}}
    frame = pd.concat([by_ratio("resnet56", dataset, top1) for dataset in ("cifar10", "cifar100")])
    assert verdict(frame, "GraSP loses to SNIP in most cases") == answer


@pytest.mark.parametrize("best, answer", [("SNIP", "agrees"), ("GraSP", "agrees"), ("LAMP", "disagrees")])
def test_snip_is_first_on_resnet_grasp_and_synflow_apart(best, answer):
    top1 = dict.fromkeys(tables.THESIS, 20) | {"SNIP": 50} | {best: 60}
    assert verdict(cifar(top1), "SNIP is best where compression errors are small") == answer


@pytest.mark.parametrize("lamp, answer", [(40, "agrees"), (10, "disagrees")])
def test_lamp_keeps_more_of_its_accuracy_than_most(lamp, answer):
    top1 = {base: {32: 60, 64: 20} for base in tables.THESIS} | {"LAMP": {32: 60, 64: lamp}}
    frame = pd.concat([by_ratio("vgg16", dataset, top1) for dataset in ("cifar10", "cifar100")])
    assert verdict(frame, "LAMP is more consistent") == answer


@pytest.mark.parametrize("collapsed, answer", [
    (["GlobalMag"], "agrees"), (["GlobalMag", "LayerMag"], "disagrees"), ([], "disagrees")])
def test_global_methods_collapse_and_no_layer_wise_one(collapsed, answer):
    frame = closed(cifar(dict.fromkeys(tables.THESIS, 40)), **dict.fromkeys(collapsed, 64))
    assert verdict(frame, "layer-wise ones survive") == answer


def test_who_collapses_on_resnet():
    frame, text = cifar(dict.fromkeys(tables.THESIS, 20)), "only GlobalAct and Random"
    alive, dead = frame.assign(seed=43), closed(frame, GlobalAct=32, Random=64)
    assert verdict(dead, text) == verdict(pd.concat([alive, dead.assign(seed=44), dead]), text) == "agrees"
    some = pd.concat([alive, closed(frame, GlobalAct=32).assign(seed=44), dead])
    assert verdict(some, text) == "disagrees"
    [claim] = [claim for claim in claims.CLAIMS if text in claim.text]
    assert claims.judge(claim, some, "run")[0].endswith("in most seeds: GlobalAct; in fewer: Random")
    assert verdict(closed(frame, GlobalAct=32, Random=64, LAMP=64), text) == "disagrees"
    assert verdict(closed(frame, GlobalAct=32), text) == "disagrees"


def test_snip_and_grasp_collapse_less_where_magnitude_collapses_first_on_both_data_sets():
    frame, text = cifar(dict.fromkeys(tables.THESIS, 20), (8, 32, 64)), "SNIP and GraSP collapse less"
    assert verdict(closed(frame, GlobalMag=32), text) == verdict(closed(frame, GlobalMag=8, SNIP=32), text) == "agrees"
    assert verdict(closed(frame, GlobalMag=32, GraSP=32), text) == verdict(frame, text) == "disagrees"
    one = closed(frame, GlobalMag=32)["collapsed"] & (frame["dataset"] == "cifar10")
    assert verdict(frame.assign(collapsed=one), text) == "disagrees"


def test_the_entries_printed_at_chance_are_those_of_closed_masks_or_not():
    frame, text, printed = cifar(dict.fromkeys(tables.THESIS, 20)), "come from layer-collapse", tables.thesis()
    dead = printed[printed["top1"].isin([9.89, 0.99])]
    cases = set(zip(dead["dataset"], dead["model"], dead["method"], dead["compression"]))
    shut = [case in cases for case in zip(frame["dataset"], frame["model"], frame["base"], frame["compression"])]
    assert len(cases) == 24 and verdict(frame.assign(collapsed=shut), text) == "agrees"
    assert verdict(frame.assign(collapsed=shut), text, "published") == "does not arise"
    [claim] = [claim for claim in claims.CLAIMS if text in claim.text]
    one = frame.index[pd.Series(shut) & (frame["reading"] == "run")][0]
    open_in_one = frame.assign(collapsed=shut, seed=44)
    open_in_one.loc[one, "collapsed"] = False
    seeds = pd.concat([frame.assign(collapsed=shut), frame.assign(collapsed=shut, seed=43), open_in_one], ignore_index=True)
    assert claims.judge(claim, seeds, "run") == ("24 of 24 let nothing pass in most seeds, 23 in all", "agrees")
    assert verdict(frame.assign(collapsed=[value and place != one for place, value in enumerate(shut)]), text) == "disagrees"


@pytest.mark.parametrize("ahead, answer", [(3, "agrees"), (2, "disagrees")])
def test_global_is_better_in_more_than_half_of_the_cases(ahead, answer):
    top1 = {f"{scope}{kind}": 20 for scope in ("Global", "Layer") for kind in claims.KINDS}
    top1 |= {f"Global{kind}": 30 for kind in claims.KINDS[:ahead]}
    assert verdict(grid(top1), "layer-wise (the CNN on MNIST)") == answer
    assert verdict(cifar(top1), "layer-wise (VGG-16 and ResNet-56)") == answer


def test_on_mnist_a_large_share_is_more_than_a_third():
    top1 = dict.fromkeys(tables.THESIS, 20) | {"Random": 30}
    text = "worse than random pruning in a large share"
    for better, answer in ((("GlobalMag", "GlobalLAP"), "agrees"), (("GlobalMag", "GlobalLAP", "LayerMag"), "disagrees")):
        assert verdict(grid(top1 | dict.fromkeys(better, 40)), text) == answer


@pytest.mark.parametrize("steps, answer", [((50, 40, 30, 20), "agrees"), ((60, 30, 60, 30), "disagrees")])
def test_a_smooth_curve_is_one_that_bends_little_however_steep(steps, answer):
    ratios = (2, 4, 8, 16)
    vgg = {base: dict(zip(ratios, (50, 30, 40, 20))) for base in tables.THESIS}
    resnet = {base: dict(zip(ratios, steps)) for base in tables.THESIS}
    frame = pd.concat([by_ratio(model, dataset, top1) for model, top1 in (("vgg16", vgg), ("resnet56", resnet))
                       for dataset in ("cifar10", "cifar100")])
    assert verdict(frame, "less volatile") == answer


def test_an_unpruned_synflow_hardly_prunes():
    frame = grid({"SynFlow": 60}, "resnet56", "cifar10", errors={"SynFlow": -98})
    assert verdict(frame, "SynFlow hardly prunes") == "agrees"
    frame = grid({"SynFlow": 60}, "resnet56", "cifar10", errors={"SynFlow": -10})
    assert verdict(frame, "SynFlow hardly prunes") == "disagrees"
    assert verdict(grid({"SynFlow": 60}, "resnet56", "cifar10"), "SynFlow hardly prunes") == "does not arise"


@pytest.mark.parametrize("grasp, answer", [(45, "disagrees"), (35, "agrees")])
def test_grasp_meets_its_rivals_at_the_compression_that_it_reaches(grasp, answer):
    """As released at half of that asked for, so at the r/2 of others; published at r itself."""
    def frame(suffix):
        return tables.frame(
            record(cell(base + suffix, ratio, dataset, "resnet56"), [round(100 * top1[ratio])] * 3)
            for base, top1 in (("SNIP", {32: 40, 64: 30}), ("GraSP", {32: 60, 64: grasp})) for ratio in (32, 64)
            for dataset in ("cifar10", "cifar100"))
    assert verdict(frame("@run"), "loses to SNIP in most") == answer
    assert verdict(frame(""), "loses to SNIP in most", "published") == "disagrees"


@pytest.mark.parametrize("apart, answer", [(4, "agrees"), (6, "disagrees")])
def test_errors_of_the_two_data_sets_are_compared_method_by_method(apart, answer):
    top1 = dict.fromkeys(tables.THESIS, 20)
    frame = pd.concat([grid(top1, "resnet56", dataset, errors={"GraSP": -50 + more})
                       for dataset, more in (("cifar10", 0), ("cifar100", apart))], ignore_index=True)
    assert verdict(frame, "ResNet-56: compression errors") == answer


def test_layer_collapse_is_told_by_the_masks():
    frame = pd.concat([grid(dict.fromkeys(tables.THESIS, 20), "vgg16", dataset) for dataset in ("cifar10", "cifar100")])
    severed = closed(frame, SynFlow=32)
    assert verdict(frame, "first to collapse") == "disagrees" and verdict(severed, "first to collapse") == "agrees"
    assert verdict(closed(frame, SynFlow=64, LAMP=32), "first to collapse") == "disagrees"
    assert verdict(frame, "empties no layer") == "agrees"
    assert verdict(frame.assign(empty_layers=1), "empties no layer") == "disagrees"


def test_a_cell_of_which_two_things_are_asked_is_counted_once():
    frame = grid({base: 10 for base in tables.ORDER if base != "LAMP"})
    assert verdict(frame, "every other method has collapsed") == "not decidable (9 of 10 cells)"


def test_the_thesis_agrees_with_itself():
    """Its printed numbers, taken for cells, must bear out what it reads from them, where they suffice."""
    numbers, factor = tables.thesis(), tables.thesis_factor(10_000)
    cells = [cell(f"{row.method}@run", row.compression, row.dataset, row.model)
             for row in numbers.itertuples()]
    tops = [round(100 * top1 / factor) for top1 in numbers["top1"]]
    frame = tables.frame(record(of, [top] * 3) for of, top in zip(cells, tops, strict=True))
    # These ask for more than is printed.
    beyond = ("MNIST", "prunes", "rate", "over all ratios", "at once", "negligibly", "empties", "collapse", "volatile")
    decidable = [claim for claim in claims.CLAIMS if not any(word in claim.text for word in beyond)]
    background, *own = [claims.judge(claim, frame, "run")[1] for claim in decidable]
    assert own == ["agrees"] * 15
    assert background == "disagrees"    # that global pruning is better than layer-wise, it says of others' work


def test_provenance_tells_the_store_by_its_bytes(tmp_path):
    (tmp_path / "results.jsonl").write_text("a")
    body = tables.provenance(grid({"SNIP": 50}), tmp_path / "results.jsonl").body.set_index("what")["value"]
    assert body["SHA-256 of the store"].startswith("ca978112") and body["cells"] == "4 of 4"


def test_provenance_counts_the_cells_of_each_device(tmp_path):
    found = [record(cell(ratio=ratio), device=device) for ratio, device in ((2, "cpu"), (4, "a card"), (8, "cpu"))]
    body = tables.provenance(tables.frame(found), tmp_path / "results.jsonl").body.set_index("what")["value"]
    assert body["devices"] == "cpu (2 cells), a card (1 cells)"


def test_what_shows_anothers_training_was_not_trained():
    found = [record(cell("LAMP", 32)), record(cell("LAMP@run", 32)), record(cell("SynFlow@run", 32), trained_as="Dense")]
    line = tables.progress(tables.frame(found)).body.iloc[0]
    assert (line["cells"], line["trained"]) == ("3 of 3", 2)


def test_progress_counts_what_is_there():
    frame = tables.frame([record(cell("SNIP"))], [cell("SNIP"), cell("LAMP")])
    assert tables.progress(frame).body["cells"].tolist() == ["1 of 2"]
    cells = [cell("SNIP", seed=1), cell("SNIP", seed=2), cell("LAMP", seed=1), cell("OBD", seed=3)]
    cells.append(cell("GraSP", seed=1, epochs=0))
    found = [record(cells[0]), record(cells[1], diverged=1), record(cells[2]), record(cells[4])]
    found[2].report |= {"collapsed": True}
    line = tables.progress(tables.frame(found, cells)).body.iloc[0].to_dict()
    assert line == {"data set": "MNIST", "model": "CNN", "learning rate": "0.001", "seeds begun": "2 of 3",
                    "cells": "4 of 5", "trained": 3, "masks that let nothing pass": 1, "diverged": 1}


def test_agreement_of_the_thesis_with_itself_is_perfect_and_counts_what_is_there():
    printed = tables.thesis()
    rows = pd.DataFrame([{"dataset": row.dataset, "model": row.model, "compression": float(row.compression),
                          "base": row.method, "reading": "run", "top1_thesis": row.top1, "top5_thesis": row.top5}
                         for row in printed.itertuples()])
    rows = rows.assign(**dict.fromkeys(tables._RECIPE, 1), top1=rows["top1_thesis"], trained_as=None, precision="bf16")
    body = tables.agreement(rows).body
    assert f"{len(rows)} cells trained in bf16" in tables.agreement(rows).caption
    assert len(body) == 8 and set(body["cells"]) == {"13 of 13"}
    assert body.loc[0, ["top-5: chance coincides", "top-1: chance coincides"]].tolist() == ["4 of 4"] * 2
    assert set(body["top-1: median difference"]) == {"0.00"} and set(body["top-5: rank correlation"]) == {"1.00"}
    coincide = [text.split(" of ") for text in body["top-1: chance coincides"]]
    assert all(both == either for both, either in coincide)
    # One more percent everywhere, a reversed order, half of the cells, none of them.
    worse = rows.assign(top1_thesis=rows["top1_thesis"] + 7)
    assert set(tables.agreement(worse).body["top-1: median difference"]) == {"7.00"}
    reversed_ = rows.assign(top1_thesis=-rows["top1_thesis"])
    assert set(tables.agreement(reversed_).body["top-1: rank correlation"]) == {"-1.00"}
    some = tables.agreement(rows[rows["base"].isin(["SNIP", "LAMP"])]).body
    assert set(some["cells"]) == {"2 of 13"} and set(some["top-1: rank correlation"]) == {"–"}
    assert tables.agreement(rows.iloc[:0]).body.empty and tables.agreement(rows.assign(epochs=0)).body.empty
    assert set(tables.agreement(rows.assign(top1_thesis=float("nan"))).body["top-1: median difference"]) == {"–"}


def summed(*top1, column="top1"):
    """The summary of cells that differ in their seed only, by their top-1."""
    records = [record(cell("LAMP", seed=seed), [round(100 * value)] * 3) for seed, value in enumerate(top1)]
    return tables.summary(tables.frame(records), column).iloc[0]


def test_an_interval_beyond_what_is_possible_gives_way_to_the_range_of_the_seeds():
    assert tables.spread(summed(80, 81, 82)) == f" ± {stats.t.ppf(0.975, 2) / 3 ** 0.5:.2f}"
    assert tables.spread(summed(11, 86, 84)) == " (11.00 to 86.00)"              # 60 ± 106
    assert tables.spread(summed(1, 20, 30)) == " (1.00 to 30.00)"                # 17 ± 36
    assert tables.spread(summed(99.5, 99.9, 99.1), digits=1) == " (99.1 to 99.9)"    # 99.5 ± 1.0
    as_counted = summed(97.9, 98.0, 97.4, column="top1_thesis")     # × 0.98892: 96.7 ± 0.8, which 100 and 98.892 allow
    assert as_counted["mean"] + as_counted["half"] < 98 and not as_counted["ranged"]
    as_counted = summed(99.5, 99.9, 98.5, column="top1_thesis")     # 98.2 ± 1.8, which is above 98.892 and below 100
    assert 98.9 < as_counted["mean"] + as_counted["half"] < 100 and as_counted["ranged"]
    assert tables.spread(as_counted) == " (97.41 to 98.79)"
    assert tables.spread(summed(80, 81, 82), ranged=True) == " (80.00 to 82.00)"
    assert tables.spread(summed(80)) == tables.spread(summed(80), ranged=True) == ""


def test_a_table_says_over_how_many_seeds_its_numbers_are():
    three = [record(cell("SNIP", 32, seed=seed), [7000 + 100 * seed] * 3) for seed in (1, 2, 3)]
    one = record(cell("LAMP", 32, seed=1))
    assert "over 3 seeds (1, 2, 3)" in (caption := tables.accuracy_table(tables.frame(three), "cnn", 32).caption)
    assert "of one seed" not in caption
    caption = tables.accuracy_table(tables.frame([*three, one]), "cnn", 32).caption
    assert "over up to 3 seeds (1, 2, 3)" in caption and "A number with neither is of one seed." in caption


def test_a_network_that_the_profile_lacks_is_one_line_and_no_file(tmp_path):
    table = tables.save(tables.accuracy_table(grid(TOP), "vgg16", 32), tmp_path / "table")
    assert table.caption == "VGG-16 on CIFAR-10 and CIFAR-100: no such cells in this profile."
    assert "<table" not in table._repr_html_() and not list(tmp_path.iterdir())
    masks = tables.accuracy_table(grid(TOP).assign(epochs=0, top1=float("nan")), "cnn", 32)
    assert "MNIST: masks alone, not trained in this profile." in masks.caption


def test_a_verdict_says_how_many_seeds_it_is_of_and_where_they_differ():
    [claim] = [claim for claim in claims.CLAIMS if "top four" in claim.text]
    frame = pd.concat([grid(TOP), grid(TOP | {"LAMP": 65}).assign(seed=43), grid(TOP).assign(seed=44)])
    assert claims.weighed(claim, grid(TOP), "run")[1] == "agrees (1 seed)"
    assert claims.weighed(claim, frame[frame["seed"] != 43], "run")[1] == "agrees (2 seeds)"
    assert claims.weighed(claim, frame, "run")[1] == "agrees (3 seeds; taken alone, 2 agree)"
    assert claims.weighed(claim, tables.frame([]), "run")[1] == "not decidable (0 of 14 cells)"
    rounded = grid(TOP, errors={"GraSP": -20}).assign(precision="bf16")
    assert claims.weighed(claim, rounded, "run")[1] == "agrees (1 seed, bf16)"
    some = rounded.assign(precision=rounded["base"].map({"SNIP": "float32"}).fillna("bf16"))
    assert claims.weighed(claim, some, "run")[1] == "agrees (1 seed, bf16 in part)"
    [masks] = [claim for claim in claims.CLAIMS if "GraSP under-prunes by 30" in claim.text]
    assert claims.weighed(masks, rounded, "run")[1] == "disagrees (1 seed)"    # of masks, which no precision moves
    table = claims.claims_table(frame.assign(precision="bf16"))
    cells = int(frame["top1"].notna().sum())
    assert f"In this store: {cells} cells trained in bf16." in table.caption
    assert "1 agree, 3 disagree, 4 do not arise" in table.caption


def test_agreement_by_hand():
    # Differences 0.5, -3 and 10; at most 1.05 × 10 × 0.98892 = 10.3837 is chance: theirs once, ours twice, both once.
    agree = partial(tables._agree, dataset="cifar10", metric="top1")
    both = pd.DataFrame({"theirs": [9.8, 13.38, 20.0], "ours": [10.3, 10.38, 30.0]})
    assert agree(both) == {
        "median difference": "3.00", "largest": "10.00 (2)", "rank correlation": "1.00", "chance coincides": "1 of 2"}
    assert agree(both.assign(ours=[10.39, 30.0, 20.0])) == {
        "median difference": "0.59", "largest": "16.62 (1)", "rank correlation": "0.50", "chance coincides": "0 of 1"}
    assert agree(both.iloc[:2])["rank correlation"] == "–"
    assert agree(both.iloc[:0])["chance coincides"] == "–"
    assert agree(both.assign(ours=10.0))["rank correlation"] == "–"      # all alike have no ranks


def test_agreement_is_of_the_mean_over_seeds_of_run_alone():
    printed = tables.thesis().query("model == 'vgg16' and dataset == 'cifar10' and compression == 32")
    factor = tables.thesis_factor(10_000)
    frame = tables.frame(
        record(cell(row.method + reading, 32, "cifar10", "vgg16", seed), [round(100 * row.top1 / factor) + off] * 3)
        for row in printed.itertuples()
        for reading, seed, off in (("@run", 1, 300), ("@run", 2, -300), ("", 1, 900), ("", 2, 900)))
    body = tables.agreement(frame).body
    line = body[body["cells"] != "0 of 13"].iloc[0]
    assert (line["cells"], line["top-1: median difference"]) == ("13 of 13", "0.00")

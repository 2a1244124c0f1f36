#!/usr/bin/env python3
"""Reads and writes Millpond's topics with confluent-kafka's own client for the schema registry; run by tests/it/clients.rs.

    confluent.py --brokers HOST:PORT --registry URL --topic TOPIC --posted FILE      reads the topic, compares with the file
    confluent.py … --write FILE                                                      writes the file's commands to the topic

A file has one command a line, as data/flights/commands.ndjson.gz: {"type": "ScheduleFlight", "body": {…}}.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from datetime import datetime

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient, record_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

NAMESPACE = "flights"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--registry", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--posted", metavar="FILE")
    parser.add_argument("--write", metavar="FILE")
    options = parser.parse_args()
    registry = SchemaRegistryClient({"url": options.registry})
    if options.write:
        write(options, registry, lines(options.write))
    if options.posted:
        return compare(read(options, registry), lines(options.posted))
    return 0


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read(options, registry):
    """Every record of the topic: (name of its schema, key, decoded value)."""
    deserializer = AvroDeserializer(registry)
    consumer = Consumer({
        "bootstrap.servers": options.brokers, "group.id": "clients-test", "enable.auto.commit": False,
        "enable.partition.eof": True, "auto.offset.reset": "earliest", "isolation.level": "read_committed"})
    partitions = consumer.list_topics(options.topic, timeout=30).topics[options.topic].partitions
    consumer.assign([TopicPartition(options.topic, number, 0) for number in partitions])
    records, open_partitions = [], set(partitions)
    while open_partitions:
        message = consumer.poll(30)
        if message is None:
            raise SystemExit("confluent.py: nothing came for 30 s, and partitions %s have not ended" % open_partitions)
        if message.error():
            open_partitions.discard(message.partition())  # the end of a partition; anything else shows as records missing
            continue
        value = deserializer(message.value(), SerializationContext(options.topic, MessageField.VALUE))
        schema_id = int.from_bytes(message.value()[1:5], "big")
        name = json.loads(registry.get_schema(schema_id).schema_str)["name"]
        records.append((name, message.key().decode(), value))
    consumer.close()
    return records


def plain(value):
    """As both sides can be compared: instants are instants, whichever zone they were posted in."""
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value.replace("Z", "+00:00")) if value[:4].isdigit() and "T" in value else value
        except ValueError:
            return value
    return value


def canonical(name, body):
    return name, tuple(sorted((field, plain(value)) for field, value in body.items() if value is not None))


def compare(records, posted):
    wrong_keys = [key for _, key, value in records if key != value["flight_id"]]
    found = collections.Counter(canonical(name, value) for name, _, value in records)
    wanted = collections.Counter(canonical(line["type"], line["body"]) for line in posted)
    missing, extra = wanted - found, found - wanted
    print("%d records read, %d posted: %d missing, %d not posted, %d keys wrong" % (
        len(records), len(posted), sum(missing.values()), sum(extra.values()), len(wrong_keys)))
    for what, differing in (("missing", missing), ("not posted", extra)):
        for one in list(differing)[:5]:
            print(what, one)
    return 1 if missing or extra or wrong_keys else 0


def write(options, registry, commands):
    """Writes commands as a Python service would: with the registered schemas, never registering one."""
    producer = Producer({"bootstrap.servers": options.brokers, "partitioner": "murmur2_random", "acks": "all"})
    serializers, failed = {}, []
    for command in commands:
        if command["type"] not in serializers:
            registered = registry.get_latest_version("%s.%s" % (NAMESPACE, command["type"]))
            again = registry.lookup_schema(registered.subject, registered.schema)
            assert (again.schema_id, again.version) == (registered.schema_id, registered.version), "lookup finds another"
            serializers[command["type"]] = AvroSerializer(
                registry, registered.schema.schema_str,
                conf={"auto.register.schemas": False, "subject.name.strategy": record_subject_name_strategy})
        body = {field: plain(value) for field, value in command["body"].items()}
        value = serializers[command["type"]](body, SerializationContext(options.topic, MessageField.VALUE))
        producer.produce(options.topic, key=command["body"]["flight_id"], value=value,
                         on_delivery=lambda error, _: failed.append(error) if error else None)
    producer.flush(30)
    if failed:
        raise SystemExit("confluent.py: not written: %s" % failed[:3])


if __name__ == "__main__":
    sys.exit(main())

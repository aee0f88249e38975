"""How gdb shows the hypervisor's own types; `make gdb` loads it. Names of bits are read from the sources."""

import re
from pathlib import Path

import gdb
import gdb.printing

PROJECT = Path(__file__).resolve().parent.parent
UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def only_field(value):
    """What a struct with one field holds, down to a plain value."""
    while value.type.code == gdb.TYPE_CODE_STRUCT and len(value.type.fields()) == 1:
        value = value[value.type.fields()[0]]
    return value


def number(value):
    return int(only_field(value))


def size(length):
    for unit, name in UNITS:
        if length >= unit and length % unit == 0:
            return f"{length // unit} {name}"
    return f"{length} bytes"


def words(value):
    """The numbers of an array in a struct."""
    array = only_field(value)
    first, last = array.type.range()
    return [int(array[index]) for index in range(first, last + 1)]


def address(value):
    return f"{value.type.name.split('::')[-1]} {number(value):#x}"


def address_range(value):
    start, length = number(value["start"]), int(value["length"])
    return f"{start:#x} to {start + length - 1:#x}, {size(length)}" if length else f"{start:#x}, empty"


def function(value):
    segment, requester = int(value["segment"]), int(value["requester"])
    place = f"{requester >> 8:02x}:{requester >> 3 & 31:02x}.{requester & 7}"
    return f"{segment:04x}:{place}" if segment else place


def vectors(value):
    """A set of vectors, as ranges."""
    there = [32 * index + bit for index, word in enumerate(words(value)) for bit in range(32) if word >> bit & 1]
    ranges = []
    for vector in there:
        if ranges and ranges[-1][1] == vector - 1:
            ranges[-1][1] = vector
        else:
            ranges.append([vector, vector])
    text = (f"{first:#x}" if first == last else f"{first:#x} to {last:#x}" for first, last in ranges)
    return ", ".join(text) or "no vector"


def counters(value):
    """Exits by reason, those that there were."""
    names = [field.name.split("::")[-1] for field in gdb.lookup_type("guest::counters::Counter").fields()]
    counts = [f"{name} {count}" for name, count in zip(names, words(value)) if count]
    return ", ".join(counts) or "no exits"


def request_bits():
    source = (PROJECT / "guest/src/requests.rs").read_text()
    return [(name, int(bit)) for name, bit in re.findall(r"^const (\w+): u32 = 1 << (\d+);", source, re.MULTILINE)]


def requests(value):
    """What is asked of a virtual CPU."""
    word = number(value)
    asked = [name.lower() for name, bit in request_bits() if word >> bit & 1]
    return ", ".join(asked) or "nothing is asked"


class Printer:
    """A value as one line of text."""

    def __init__(self, value, text):
        self.value = value
        self.text = text

    def to_string(self):
        return self.text(self.value)


TEXTS = {
    r"arch::address::(Hpa|Gpa|Gva|Iova)": address,
    r"(arch::address::HpaRange|guest::memory_map::GpaRange)": address_range,
    r"arch::bdf::Bdf": function,
    r"arch::interrupt::(Vector|ApicId)": address,
    r"arch::vectors::VectorSet": vectors,
    r"guest::counters::ExitCounters": counters,
    r"guest::requests::(RequestWord|Requests)": requests,
}


class Printers(gdb.printing.PrettyPrinter):
    def __init__(self):
        super().__init__("nexit")

    def __call__(self, value):
        name = gdb.types.get_basic_type(value.type).name or ""
        for pattern, text in TEXTS.items():
            if re.fullmatch(pattern, name):
                return Printer(value, text)
        return None


gdb.printing.register_pretty_printer(gdb.current_objfile(), Printers(), replace=True)

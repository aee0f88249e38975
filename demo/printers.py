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


def declared(type):
    """The type as it is declared, with all variants. A name may be that of a namespace, too."""
    found = gdb.lookup_type(type.name)
    return found if found.code == type.code else type.unqualified()


def variant(value):
    """What an enum holds now: the variant's name, and its fields as a struct, if it has any."""
    if value.type.code == gdb.TYPE_CODE_ENUM:
        return str(value).split("::")[-1], None
    # In an array gdb takes each element for the variant of the first, unless it is looked at by its address.
    if value.address is not None:
        value = value.address.cast(declared(value.type).pointer()).dereference()
    # gdb shows the variant that is there, behind the number that says which.
    field = [field for field in value.type.fields() if not field.artificial][0]
    return field.name, value[field] if value[field].type.fields() else None


def is_enum(value):
    return any(field.artificial for field in value.type.fields())


def named(field, value):
    """A field of a struct: a flag by its name alone, and only where it is set."""
    if value.type.code == gdb.TYPE_CODE_BOOL:
        return field.name if value else ""
    return words_of(value) if re.fullmatch(r"__\d+", field.name) else f"{field.name} {words_of(value)}"


def text_at(pointer, length):
    """Text, or where it is: of a program that does not run yet a table may still be empty."""
    try:
        return pointer.string(length=length)
    except gdb.MemoryError:
        return f"text at {int(pointer):#x}"


def words_of(value):
    """Any value, with numbers in hexadecimal. gdb 13 itself fails on enums with structs in them."""
    name, code = value.type.name or "", value.type.code
    for pattern, text in TEXTS.items():
        if re.fullmatch(pattern, name):
            return text(value)
    if name == "&str":
        return text_at(value["data_ptr"], int(value["length"]))
    if code == gdb.TYPE_CODE_ENUM or code == gdb.TYPE_CODE_STRUCT and is_enum(value):
        name, content = variant(value)
        if content is None:
            return name
        return words_of(content) if name == "Some" else f"{name} {words_of(content)}"
    if code == gdb.TYPE_CODE_STRUCT:
        texts = [named(field, value[field]) for field in value.type.fields()]
        return ", ".join(text for text in texts if text)
    return str(value) if code == gdb.TYPE_CODE_BOOL else f"{int(value):#x}"


def exit_reason(value):
    """Why a guest's CPU has left it."""
    name, content = variant(value)
    return name if content is None else f"{name}: {words_of(content)}"


def recent_exits(value):
    """The last exits, a line each, the newest at the end."""
    exits, count = value["exits"], number(value["count"])
    kept = exits.type.range()[1] + 1
    lines = []
    for index in range(count, count + kept):
        there, content = variant(exits[index % kept])
        if there == "Some":
            exit = content[content.type.fields()[0]]
            reason = str(exit["reason"]).split("::")[-1]
            lines.append(f"{reason} {int(exit['detail']):#x} at {int(exit['rip']):#x}")
    return "\n  ".join(["the last exits:", *lines]) if lines else "no exits"


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
    r"arch::exit::ExitReason": exit_reason,
    r"arch::vectors::VectorSet": vectors,
    r"guest::counters::ExitCounters": counters,
    r"guest::recent::RecentExits": recent_exits,
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

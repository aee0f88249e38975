//! The targets, by what makes their input.

mod cpu;
mod exits;
mod firmware;
mod frames;
mod line;
mod loader;
mod pci;
mod text;

/// One entry point.
#[derive(Debug)]
pub struct Target {
    /// Its name: of its corpus, and for `--target`.
    pub name: &'static str,
    /// Who makes such input, and what is claimed: a row of the table in `docs/fuzzing.md`.
    pub claim: &'static str,
    /// Takes any bytes, and panics where the claim does not hold.
    pub run: fn(&[u8]),
    /// How many inputs beside the corpus each `make test` gives it, in a second or so.
    pub quick: u64,
}

const fn target(name: &'static str, run: fn(&[u8]), quick: u64, claim: &'static str) -> Target {
    Target { name, claim, run, quick }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    target(
        "exits",
        exits::honest,
        150,
        "a guest of two CPUs: any exits in each mode reach only what is the guest's, and no mistake of policy is refused",
    ),
    target(
        "exits-lying",
        exits::lying,
        150,
        "the same with devices whose configuration space reads otherwise each time: only what is the guest's is reached",
    ),
    target(
        "pci-view",
        pci::view,
        2_000,
        "a guest's accesses to configuration space: BARs, messages and what is hidden are never written",
    ),
    target(
        "pci-scan",
        pci::scan,
        200,
        "devices that say anything: all functions are found once, and no BAR that passes overlaps what is somebody's",
    ),
    target(
        "apic",
        cpu::apic,
        2_000,
        "a guest's local APIC: physical registers get granted vectors only, and never an IPI",
    ),
    target(
        "shadow",
        cpu::shadow,
        30,
        "a guest's IDT: the shadow differs from it in nothing but closed gates, and each gate without a grant is closed",
    ),
    target(
        "instruction",
        cpu::instruction,
        10_000,
        "a guest's code: lengths are as an independent decoder says, and carrying it out never panics",
    ),
    target("paging", cpu::paging, 4_000, "a guest's page tables: any tables, any address"),
    target(
        "configuration",
        text::configuration,
        2_000,
        "`nexit.toml`: refused with a sentence, or within what a configuration may be",
    ),
    target(
        "monitor",
        text::monitor,
        4_000,
        "what is typed to the monitor: a command, or a sentence",
    ),
    target(
        "machine-file",
        text::machine_file,
        300,
        "a machine file: refused with a sentence, or read the same after it was written",
    ),
    target("explain", text::explain, 1_000, "a log for `nexit explain`"),
    target(
        "symbols",
        text::symbols,
        1_000,
        "a list of symbols: each name is of the list, and near its address",
    ),
    target(
        "loader",
        loader::loader,
        4_000,
        "what a boot loader leaves: all that is found lies within memory",
    ),
    target("elf", loader::elf, 300, "an ELF file: segments lie within the file"),
    target(
        "kernel",
        loader::kernel,
        1_000,
        "a guest's kernel: what is loaded lies within the file and the guest's RAM",
    ),
    target(
        "acpi",
        firmware::acpi,
        500,
        "the firmware's tables with sound checksums: each CPU once",
    ),
    target("acpi-memory", firmware::acpi_memory, 2_000, "the same as bytes from the RSDP on"),
    target("dmar", firmware::dmar, 2_000, "the DMAR table: one answer for each function"),
    target(
        "console",
        line::console,
        1_000,
        "guests' bytes and keys on the serial line: only the hypervisor's own lines have its mark",
    ),
    target(
        "queue",
        line::queue,
        80,
        "bytes for the serial line: each is sent, waits or is counted as lost",
    ),
    target("uart", line::uart, 20, "a UART that answers anything: polls end"),
    target(
        "frames",
        frames::frames,
        2_000,
        "a debugger's frames between any bytes of the line: each arrives whole, and no text is lost",
    ),
    target("gdb", line::gdb, 1_000, "what comes over gdb's line: answers are whole packets"),
    target("screen", line::screen, 100, "text on any framebuffer: pixels lie within it"),
];

/// Each target takes its corpus, and inputs by a seed: the bounded run.
#[cfg(test)]
mod tests {
    use super::TARGETS;
    use crate::{corpus, mutate};

    fn holds(name: &str) {
        let target = TARGETS.iter().find(|target| target.name == name).unwrap();
        let corpus = corpus::read(name).unwrap();
        assert!(!corpus.is_empty(), "{name} has no corpus");
        mutate::run(target, &corpus, 1, target.quick);
    }

    macro_rules! each {
        ($($test:ident $name:literal,)*) => {
            $(#[test] fn $test() { holds($name); })*

            #[test]
            fn each_target_has_its_test_and_a_name_of_its_own() {
                assert_eq!([$($name),*].to_vec(), TARGETS.iter().map(|it| it.name).collect::<Vec<_>>());
            }
        };
    }

    each! {
        exits "exits",
        exits_with_devices_that_lie "exits-lying",
        pci_view "pci-view",
        pci_scan "pci-scan",
        apic "apic",
        shadow "shadow",
        instruction "instruction",
        paging "paging",
        configuration "configuration",
        monitor "monitor",
        machine_file "machine-file",
        explain "explain",
        symbols "symbols",
        loader "loader",
        elf "elf",
        kernel "kernel",
        acpi "acpi",
        acpi_memory "acpi-memory",
        dmar "dmar",
        console "console",
        queue "queue",
        uart "uart",
        frames "frames",
        gdb "gdb",
        screen "screen",
    }
}

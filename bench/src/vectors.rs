//! Where the gates of the guest's kernel lead, by vector: for the plugin, which counts interrupts by their
//! handlers' first instructions. The guest itself says it (`/proc/kallsyms`), once for each kernel; all
//! boots are without KASLR, so it stays true. Pure.

use std::collections::BTreeMap;

/// The first and the last of the vectors whose stubs lie in a row at `irq_entries_start`, each of the same
/// length, followed by `spurious_entries_start` (Linux, `arch/x86/include/asm/idtentry.h`).
const DEVICES: std::ops::RangeInclusive<u64> = 0x20..=0xeb;
/// The others by the names of their handlers (`arch/x86/include/asm/irq_vectors.h`).
const SYSTEM: [(&str, u8); 11] = [
    ("apic_timer_interrupt", 0xec),
    ("irq_work", 0xf6),
    ("x86_platform_ipi", 0xf7),
    ("reboot", 0xf8),
    ("threshold", 0xf9),
    ("thermal", 0xfa),
    ("call_function_single", 0xfb),
    ("call_function", 0xfc),
    ("reschedule_ipi", 0xfd),
    ("error_interrupt", 0xfe),
    ("spurious_apic_interrupt", 0xff),
];

/// The plugin's file, from the guest's lines `bench: boot symbol ADDRESS TYPE NAME`; `None` where its kernel
/// is not laid out as known.
pub(crate) fn file(console: &str) -> Option<String> {
    let symbol = |line: &str| {
        let (_, rest) = line.split_once("bench: boot symbol ")?;
        let mut words = rest.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((words.nth(1)?.to_owned(), address))
    };
    let symbols: BTreeMap<String, u64> = console.lines().filter_map(symbol).collect();
    let first = *symbols.get("irq_entries_start")?;
    let bytes = symbols.get("spurious_entries_start")?.checked_sub(first)?;
    let count = DEVICES.end() - DEVICES.start() + 1;
    if bytes == 0 || bytes % count != 0 {
        return None;
    }
    let step = bytes / count;
    let devices = DEVICES.map(|vector| (first + (vector - DEVICES.start()) * step, vector));
    let system = SYSTEM.iter().filter_map(|(name, vector)| {
        Some((*symbols.get(&format!("asm_sysvec_{name}"))?, u64::from(*vector)))
    });
    Some(devices.chain(system).map(|(at, vector)| format!("{at:x} {vector:x}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stubs_in_a_row_and_named_handlers_have_their_vectors() {
        let console = "bench: boot symbol ffffffff81c00290 T irq_entries_start\n\
                       bench: boot symbol ffffffff81c008f0 T spurious_entries_start\n\
                       bench: boot symbol ffffffff81c00ef0 T asm_sysvec_apic_timer_interrupt\n";
        let file = file(console).unwrap();
        assert!(file.starts_with("ffffffff81c00290 20\nffffffff81c00298 21\n"), "{file}");
        assert!(file.ends_with("ffffffff81c008e8 eb\nffffffff81c00ef0 ec\n"), "{file}");
        assert_eq!(super::file("bench: boot symbol 0 T irq_entries_start\n"), None);
    }
}

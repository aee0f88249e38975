//! The HPET: where ACPI's tables name one there is one, and else nothing claims it.

use payload::fact;

/// Where a PC's firmware puts the pointer to its tables (ACPI "Finding the RSDP on IA-PC Systems").
const PLACES: [(u64, u64); 2] = [(0x8_0000, 0xa_0000), (0xe_0000, 0x10_0000)];
const POINTER: [u8; 8] = *b"RSD PTR ";
/// More than any machine has.
const MAX_TABLES: u64 = 64;
/// Femtoseconds of a tick at most (IA-PC HPET "General Capabilities and ID Register").
const LONGEST_PERIOD: u32 = 0x05f5_e100;

pub(crate) fn read<T: Copy>(at: u64) -> T {
    // SAFETY: the first 4 GiB are mapped onto themselves, and firmware's tables may be read.
    unsafe { (at as *const T).read_unaligned() }
}

fn pointer() -> Option<u64> {
    let mut places = PLACES.into_iter().flat_map(|(first, end)| (first..end).step_by(16));
    places.find(|at| read::<[u8; 8]>(*at) == POINTER)
}

/// The table of this name.
pub(crate) fn table(name: [u8; 4]) -> Option<u64> {
    let pointer = pointer()?;
    let extended: u64 = if read::<u8>(pointer + 15) >= 2 { read(pointer + 24) } else { 0 };
    let (root, width) =
        if extended == 0 { (u64::from(read::<u32>(pointer + 16)), 4) } else { (extended, 8) };
    let count = (u64::from(read::<u32>(root + 4)).saturating_sub(36) / width).min(MAX_TABLES);
    let mut tables = (0..count).map(|index| {
        let at = root + 36 + width * index;
        if width == 4 { u64::from(read::<u32>(at)) } else { read(at) }
    });
    tables.find(|at| read::<[u8; 4]>(*at) == name)
}

pub(crate) fn all() {
    fact!("hpet: ACPI's tables are found"; "{}", table(*b"FACP").is_some());
    let named = table(*b"HPET");
    let ticks = |table: u64| {
        let period = read::<u32>(read::<u64>(table + 44) + 4);
        period != 0 && period <= LONGEST_PERIOD
    };
    fact!("hpet: ACPI names it"; "{}", named.is_some());
    fact!("hpet: what ACPI names is there"; "{}", named.is_none_or(ticks));
}

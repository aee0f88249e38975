//! MSRs that the CPU itself switches at each entry and exit (SDM "VM-Entry Controls for MSRs", "VM-Exit Controls for MSRs"):
//! IA32_SPEC_CTRL alone. The guest writes it with no exit. So the CPU stores it at an exit and loads it at the next entry,
//! and in between it holds the host's value, whatever the guest has asked of speculation.

use core::mem::offset_of;

use arch::Hpa;
use arch::msr::IA32_SPEC_CTRL;

use crate::field::{self, FieldWriter};

/// An entry of a list (SDM "Format of an MSR Entry").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C, align(16))]
pub(crate) struct MsrEntry {
    index: u32,
    reserved: u32,
    value: u64,
}

/// The lists, in memory of the virtual CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub(crate) struct MsrLists {
    /// Stored at an exit, loaded at an entry.
    guest: MsrEntry,
    /// Loaded at an exit.
    host: MsrEntry,
}

const _: () = assert!(size_of::<MsrEntry>() == 16 && size_of::<MsrLists>() == 32);

impl MsrLists {
    /// With this value for the host; the guest begins with 0, as after a reset.
    pub(crate) const fn new(host_control: u64) -> Self {
        const fn entry(value: u64) -> MsrEntry {
            MsrEntry { index: IA32_SPEC_CTRL, reserved: 0, value }
        }
        Self { guest: entry(0), host: entry(host_control) }
    }
}

/// Writes the fields for lists at `place`.
pub(crate) fn write(vmcs: &mut impl FieldWriter, place: Hpa) {
    let host = place.as_u64() + offset_of!(MsrLists, host) as u64;
    vmcs.write(field::VM_EXIT_MSR_STORE_ADDRESS, place.as_u64());
    vmcs.write(field::VM_ENTRY_MSR_LOAD_ADDRESS, place.as_u64());
    vmcs.write(field::VM_EXIT_MSR_LOAD_ADDRESS, host);
    for count in [
        field::VM_EXIT_MSR_STORE_COUNT,
        field::VM_EXIT_MSR_LOAD_COUNT,
        field::VM_ENTRY_MSR_LOAD_COUNT,
    ] {
        vmcs.write(count, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::{Field, Width};
    use std::collections::BTreeMap;

    #[derive(Default)]
    struct Written(BTreeMap<u32, u64>);

    impl FieldWriter for Written {
        fn write<W: Width>(&mut self, field: Field<W>, value: W::Value) {
            self.0.insert(field.number(), value.into());
        }
    }

    #[test]
    fn an_exit_stores_the_guests_value_where_the_entry_finds_it_and_loads_the_hosts() {
        let lists = MsrLists::new(1);
        // SAFETY: 32 bytes of integers without padding.
        let words: [u64; 4] = unsafe { core::mem::transmute(lists) };
        assert_eq!(words, [0x48, 0, 0x48, 1], "the guest's, the host's");
        let mut written = Written::default();
        write(&mut written, Hpa::new(0x3000));
        let expected = [
            (0x2006, 0x3000),
            (0x2008, 0x3010),
            (0x200a, 0x3000),
            (0x400e, 1),
            (0x4010, 1),
            (0x4014, 1),
        ];
        assert_eq!(written.0, BTreeMap::from(expected));
    }
}

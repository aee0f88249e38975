//! Walks over hand-made tables, and over any tables at all.

use super::*;
use crate::fake::{FakeMemory, FakeVcpu};
use proptest::prelude::*;

const ALL: u64 = PRESENT | WRITABLE | USER;
const READ: Access = Access { write: false, fetch: false, user: false };
const WRITE: Access = Access { write: true, ..READ };
const FETCH: Access = Access { fetch: true, ..READ };
const USER_READ: Access = Access { user: true, ..READ };

/// 4- or 5-level tables at 0x1000, 0x2000 … that map one 4 KiB page, one 2 MiB page and one
/// 1 GiB page.
fn long(levels: u32) -> (FakeVcpu, FakeMemory) {
    let mut vcpu = FakeVcpu::new(Mode::Bits64);
    vcpu.cr[3] = 0x1000;
    vcpu.cr[0] |= Cr0::WP.bits();
    vcpu.cr[4] = if levels == 5 { Cr4::LA57.bits() | 0x20 } else { 0x20 };
    vcpu.efer |= Efer::NXE.bits();
    let mut memory = FakeMemory::new(1 << 40);
    let mut table = 0x1000;
    for _ in 1..levels {
        memory.set_u64(table, (table + 0x1000) | ALL);
        table += 0x1000;
    }
    let directory = table - 0x1000;
    memory.set_u64(table + 8, 0x1_2345_6000 | ALL);
    memory.set_u64(directory + 8, 0x4000_0000 | ALL | LARGE);
    memory.set_u64(directory - 0x1000 + 8, 0x2_4000_0000 | ALL | LARGE);
    (vcpu, memory)
}

fn leaf(levels: u32) -> u64 {
    u64::from(levels) * 0x1000 + 8
}

fn page_fault(address: u64, error_code: u32) -> Result<Gpa, MemoryFault> {
    Err(MemoryFault::Page { address: Gva::new(address), error_code })
}

#[test]
fn four_and_five_levels_reach_all_page_sizes() {
    for levels in [4, 5] {
        let (vcpu, memory) = long(levels);
        let at = |gva| translate(&vcpu, &memory, Gva::new(gva), READ);
        assert_eq!(at(0x1abc), Ok(Gpa::new(0x1_2345_6abc)), "{levels} levels");
        assert_eq!(at(0x2f_edcb), Ok(Gpa::new(0x400f_edcb)), "{levels} levels");
        assert_eq!(at(0x7abc_def0), Ok(Gpa::new(0x2_7abc_def0)), "{levels} levels");
        assert_eq!(at(0x2000), page_fault(0x2000, 0), "{levels} levels");
    }
}

#[test]
fn an_access_is_noted_in_every_entry_and_a_write_in_the_last() {
    const A: u64 = ACCESSED;
    for levels in [4, 5] {
        for (gva, level) in [(0x1abc, 1), (0x2f_edcb, 2), (0x7abc_def0, 3)] {
            for (access, last) in [(READ, A), (FETCH, A), (WRITE, A | DIRTY)] {
                let (vcpu, mut memory) = long(levels);
                let gva = Gva::new(gva);
                let gpa = translate_used(&vcpu, &mut memory, gva, access);
                assert_eq!(gpa, translate(&vcpu, &memory, gva, access));
                let mut seen = Vec::new();
                let registers = PagingRegisters {
                    cr0: vcpu.cr0(),
                    cr3: vcpu.cr3(),
                    cr4: vcpu.cr4(),
                    efer: vcpu.efer(),
                };
                registers
                    .walk(&memory, gva, |visited| seen.push(visited.entry & (A | DIRTY)))
                    .unwrap();
                let mut noted = vec![A; (levels - level + 1) as usize];
                *noted.last_mut().unwrap() = last;
                assert_eq!(seen, noted, "{levels} levels, {gva}, {access:?}");
            }
        }
    }
}

#[test]
fn an_access_that_faults_is_not_noted() {
    let (vcpu, mut memory) = long(4);
    memory.set_u64(leaf(4), 0x1_2345_6000 | PRESENT | USER);
    let fault = translate_used(&vcpu, &mut memory, Gva::new(0x1abc), WRITE);
    assert_eq!(fault, page_fault(0x1abc, 3));
    assert_eq!(memory.read_u64(Gpa::new(leaf(4))), Ok(0x1_2345_6000 | PRESENT | USER));
}

#[test]
fn an_entry_that_changes_meanwhile_is_looked_at_anew() {
    /// Another CPU takes the page away before the first mark.
    struct Shared(FakeMemory, bool);
    impl GuestMemory for Shared {
        fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NotGuestMemory> {
            self.0.read(gpa, bytes)
        }
        fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
            self.0.write(gpa, bytes)
        }
        fn mark(&mut self, gpa: Gpa, old: u32, bits: u32) -> bool {
            if !core::mem::replace(&mut self.1, true) {
                self.0.set_u64(leaf(4), 0x20);
            }
            self.0.mark(gpa, old, bits)
        }
    }
    let (vcpu, memory) = long(4);
    let mut memory = Shared(memory, false);
    let fault = translate_used(&vcpu, &mut memory, Gva::new(0x1abc), WRITE);
    assert_eq!(fault, page_fault(0x1abc, 2));
    assert_eq!(memory.read_u64(Gpa::new(leaf(4))), Ok(0x20), "what is not there is not marked");
}

#[test]
fn addresses_that_are_not_canonical_are_refused_by_their_width() {
    let gva = Gva::new(0x0000_8000_0000_0000);
    let (vcpu, memory) = long(4);
    assert_eq!(translate(&vcpu, &memory, gva, READ), Err(MemoryFault::NotCanonical(gva)));
    let (vcpu, memory) = long(5);
    assert_eq!(translate(&vcpu, &memory, gva, READ), page_fault(gva.as_u64(), 0));
}

#[test]
fn rights_follow_every_level_and_the_control_registers() {
    let (mut vcpu, mut memory) = long(4);
    let at = |vcpu: &FakeVcpu, memory: &FakeMemory, access| {
        translate(vcpu, memory, Gva::new(0x1000), access).map_err(|fault| match fault {
            MemoryFault::Page { error_code, .. } => error_code,
            MemoryFault::NotCanonical(_) | MemoryFault::NotMemory(_) => u32::MAX,
        })
    };
    let page = Ok(Gpa::new(0x1_2345_6000));
    memory.set_u64(leaf(4), 0x1_2345_6000 | PRESENT | EXECUTE_DISABLE);
    assert_eq!(at(&vcpu, &memory, READ), page);
    assert_eq!(at(&vcpu, &memory, WRITE), Err(3), "CR0.WP");
    assert_eq!(at(&vcpu, &memory, USER_READ), Err(5));
    assert_eq!(at(&vcpu, &memory, FETCH), Err(0x11));
    vcpu.cr[0] &= !Cr0::WP.bits();
    assert_eq!(at(&vcpu, &memory, WRITE), page);
    vcpu.efer &= !Efer::NXE.bits();
    assert_eq!(at(&vcpu, &memory, READ), Err(9), "execute-disable is reserved");
    memory.set_u64(leaf(4), 0x1_2345_6000 | ALL);
    vcpu.cr[4] |= CR4_SMAP | CR4_SMEP;
    assert_eq!(at(&vcpu, &memory, READ), Err(1), "SMAP");
    assert_eq!(at(&vcpu, &memory, FETCH), Err(0x11), "SMEP");
    assert_eq!(at(&vcpu, &memory, USER_READ), page);
    vcpu.rflags |= RFLAGS_AC;
    assert_eq!(at(&vcpu, &memory, READ), page, "RFLAGS.AC lifts SMAP");
    memory.set_u64(0x2000, 0x3000 | PRESENT | WRITABLE);
    assert_eq!(at(&vcpu, &memory, USER_READ), Err(5), "an upper level forbids");
}

#[test]
fn reserved_bits_of_large_pages_fault() {
    let (vcpu, mut memory) = long(4);
    memory.set_u64(0x3008, 0x4000_2000 | ALL | LARGE);
    assert_eq!(translate(&vcpu, &memory, Gva::new(0x20_0000), READ), page_fault(0x20_0000, 9));
    memory.set_u64(0x1000, 0x2000 | ALL | LARGE);
    assert_eq!(translate(&vcpu, &memory, Gva::new(0x1000), READ), page_fault(0x1000, 9));
}

#[test]
fn thirty_two_bit_tables_map_small_and_large_pages() {
    let mut vcpu = FakeVcpu::new(Mode::Bits32);
    vcpu.cr = [0x8001_0011, 0, 0, 0x1000, CR4_PSE];
    let mut memory = FakeMemory::new(1 << 40);
    memory.set_u32(0x1000, 0x2000 | ALL as u32);
    memory.set_u32(0x2004, 0x0765_4000 | ALL as u32);
    // Bits 20:13 of a 4 MiB page are address bits 39:32.
    memory.set_u32(0x1004, 0x0080_0000 | 0x12 << 13 | (ALL | LARGE) as u32);
    let at = |vcpu: &FakeVcpu, gva| translate(vcpu, &memory, Gva::new(gva), READ);
    assert_eq!(at(&vcpu, 0x1123), Ok(Gpa::new(0x0765_4123)));
    assert_eq!(at(&vcpu, 0x7f_fff0), Ok(Gpa::new(0x12_00bf_fff0)));
    assert_eq!(at(&vcpu, 0x1_0000_1123), Ok(Gpa::new(0x0765_4123)), "cut to 32 bits");
    vcpu.cr[0] = 0x11;
    assert_eq!(at(&vcpu, 0x1123), Ok(Gpa::new(0x1123)), "no paging");
}

#[test]
fn pae_directory_pointers_carry_no_rights() {
    let mut vcpu = FakeVcpu::new(Mode::Bits32);
    vcpu.cr = [0x8001_0011, 0, 0, 0x1020, Cr4::PAE.bits()];
    let mut memory = FakeMemory::new(1 << 40);
    memory.set_u64(0x1020 + 24, 0x2000 | PRESENT);
    memory.set_u64(0x2000, 0x3000 | ALL);
    memory.set_u64(0x3000, 0x9_8765_4000 | ALL);
    memory.set_u64(0x2008, 0x8_0020_0000 | ALL | LARGE);
    let at = |gva, access| translate(&vcpu, &memory, Gva::new(gva), access);
    assert_eq!(at(0xc000_0042, WRITE), Ok(Gpa::new(0x9_8765_4042)));
    assert_eq!(at(0xc020_0042, USER_READ), Ok(Gpa::new(0x8_0020_0042)));
    assert_eq!(at(0x42, READ), page_fault(0x42, 0));
}

#[test]
fn a_pae_directory_pointer_that_qemu_has_marked_as_accessed_is_followed_and_no_other_reserved_bit_is()
 {
    let mut vcpu = FakeVcpu::new(Mode::Bits32);
    vcpu.cr = [0x8001_0011, 0, 0, 0x1020, Cr4::PAE.bits()];
    for (bit, followed) in [(5, true), (1, false), (2, false), (6, false), (8, false), (63, false)]
    {
        let mut memory = FakeMemory::new(1 << 40);
        memory.set_u64(0x1020, 0x2000 | PRESENT | 1 << bit);
        memory.set_u64(0x2000, ALL | LARGE);
        let at = translate(&vcpu, &memory, Gva::new(0x42), READ);
        assert_eq!(at.is_ok(), followed, "bit {bit}");
    }
}

#[test]
fn tables_where_there_is_no_memory_read_as_ones() {
    let (vcpu, mut memory) = long(4);
    memory.size = 0x2000;
    let fault = translate(&vcpu, &memory, Gva::new(0x1000), READ);
    assert_eq!(fault, page_fault(0x1000, 9), "of which some are reserved");
    let mut vcpu = FakeVcpu::new(Mode::Bits32);
    vcpu.cr = [0x8001_0011, 0, 0, 0x7000, 0];
    let last = translate(&vcpu, &memory, Gva::new(0x1000), READ);
    assert_eq!(last, Ok(Gpa::new(0xffff_f000)), "a page, where nothing is either");
}

#[test]
fn protection_keys_guard_the_pages_of_programs() {
    let (mut vcpu, mut memory) = long(4);
    let at = |vcpu: &FakeVcpu, memory: &FakeMemory, access| {
        translate(vcpu, memory, Gva::new(0x1000), access).map_err(|fault| match fault {
            MemoryFault::Page { error_code, .. } => error_code,
            MemoryFault::NotCanonical(_) | MemoryFault::NotMemory(_) => u32::MAX,
        })
    };
    let page = Ok(Gpa::new(0x1_2345_6000));
    memory.set_u64(leaf(4), 0x1_2345_6000 | ALL | 5 << 59);
    vcpu.pkru = 1 << 10;
    assert_eq!(at(&vcpu, &memory, READ), page, "they are off");
    vcpu.cr[4] |= CR4_PKE;
    assert_eq!(at(&vcpu, &memory, READ), Err(0x21));
    assert_eq!(at(&vcpu, &memory, USER_READ), Err(0x25));
    assert_eq!(at(&vcpu, &memory, FETCH), page);
    vcpu.pkru = 2 << 10;
    assert_eq!(at(&vcpu, &memory, USER_READ), page);
    assert_eq!(at(&vcpu, &memory, WRITE), Err(0x23));
    vcpu.cr[0] &= !Cr0::WP.bits();
    assert_eq!(at(&vcpu, &memory, WRITE), page);
    assert_eq!(at(&vcpu, &memory, Access { user: true, ..WRITE }), Err(0x27));
    memory.set_u64(leaf(4), 0x1_2345_6000 | PRESENT | WRITABLE | 5 << 59);
    assert_eq!(at(&vcpu, &memory, WRITE), page, "not those of the kernel");
}

#[test]
fn writes_across_a_page_that_is_missing_leave_nothing_behind() {
    let (vcpu, mut memory) = long(4);
    let before = memory.bytes.clone();
    let gva = Gva::new(0x1ffc);
    let result = write_linear(&vcpu, &mut memory, gva, WRITE, &[7; 8]);
    assert_eq!(result, page_fault(0x2000, 2).map(|_| ()));
    assert_eq!(memory.bytes, before);
}

#[test]
fn an_instruction_before_a_missing_page_is_fetched_as_far_as_it_goes() {
    let (mut vcpu, mut memory) = long(4);
    vcpu.rip = 0x1ffd;
    memory.write(Gpa::new(0x1_2345_6ffd), &[0x0f, 0x01, 0x18]).unwrap();
    let (bytes, length) = fetch_instruction(&vcpu, &memory).unwrap();
    assert_eq!(&bytes[..length], [0x0f, 0x01, 0x18]);
    assert!(crate::decode(&bytes[..length], Mode::Bits64).is_ok());
    vcpu.rip = 0x2000;
    assert_eq!(fetch_instruction(&vcpu, &memory), page_fault(0x2000, 0x10).map(|_| ([0; 15], 0)));
}

proptest! {
    #[test]
    fn what_is_written_is_read_back_across_pages(
        offset in 0_u64..0x2000, bytes in proptest::collection::vec(any::<u8>(), 0..0x1000),
        frames in proptest::sample::subsequence((0x10_u64..0x20).collect::<Vec<_>>(), 3),
    ) {
        let (vcpu, mut memory) = long(4);
        for (page, frame) in (1..).zip(&frames) {
            memory.set_u64(0x4000 + page * 8, frame << 12 | ALL);
        }
        let gva = Gva::new(0x1000 + offset);
        prop_assert_eq!(write_linear(&vcpu, &mut memory, gva, WRITE, &bytes), Ok(()));
        let mut back = vec![0; bytes.len()];
        prop_assert_eq!(read_linear(&vcpu, &memory, gva, READ, &mut back), Ok(()));
        prop_assert_eq!(&back, &bytes);
        for (at, byte) in (offset..).zip(&bytes) {
            let frame = frames[(at >> 12) as usize];
            prop_assert_eq!(memory.bytes.get(&(frame << 12 | at & 0xfff)), Some(byte));
        }
    }

    #[test]
    fn any_tables_end_in_a_page_or_a_fault(
        entries in proptest::collection::vec(any::<u64>(), 64), gva: u64, pick in 0_usize..4,
    ) {
        let (cr4, efer) = [(0x20, 0x500), (0x1020, 0xd00), (0x20, 0), (0x10, 0)][pick];
        let mut vcpu = FakeVcpu::new(Mode::Bits64);
        vcpu.cr = [0x8001_0011, 0, 0, 0, cr4];
        vcpu.efer = efer;
        let mut memory = FakeMemory::new(0x1_0000);
        for (at, entry) in entries.iter().enumerate() {
            memory.set_u64((at as u64 * 0x3f8) & 0xfff8, entry & 0x8000_0000_0000_f9ff);
        }
        let _ = translate(&vcpu, &memory, Gva::new(gva), READ);
        prop_assert!(memory.reads.get() <= 5, "a walk reads one entry a level");
    }
}

//! An ELF core file: the program headers and notes, then the RAM, where the file is sparse as the RAM is. `crash` wants this
//! order, and Linux' own note.

use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use debug::Fxsave;
use debug::pack::PAGE;
use debug::registers::UpperHalves;

use super::stub::Registers;
use super::tables::Mapping;
use crate::failure::{OrFailed as _, Result};
use crate::output::Whole;

/// Sizes of the format (System V ABI, "ELF Header", "Program Header").
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Where the RAM begins: the program headers and notes have room before it, and what they leave is a hole.
const RAM_AT: u64 = 4 << 20;
/// More program headers an ELF file cannot count; the first is that of the notes.
const MAX_SEGMENTS: usize = 0xfffe - 1;
/// Linux' `struct elf_prstatus` on x86-64: its size, and where the thread's number and the registers are.
const STATUS: usize = 336;
const THREAD_AT: usize = 32;
const REGISTERS_AT: usize = 112;

/// A core file that is being written.
pub(super) struct Core {
    file: Whole,
    ranges: Vec<Range<u64>>,
}

impl Core {
    /// Of RAM in these ranges, of which all is zero so far.
    pub(super) fn new(file: Whole, ranges: &[(u64, u64)]) -> Result<Self> {
        let ranges: Vec<Range<u64>> = ranges.iter().map(|(at, length)| *at..at + length).collect();
        let core = Self { file, ranges };
        core.file.file().set_len(core.end()).or_failed("write", core.file.path())?;
        Ok(core)
    }

    pub(super) fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// Where the RAM ends.
    fn end(&self) -> u64 {
        RAM_AT + self.ranges.iter().map(|range| range.end - range.start).sum::<u64>()
    }

    /// Where a physical address is in the file, and how much follows it there.
    fn place(&self, gpa: u64) -> Option<(u64, u64)> {
        let mut before = RAM_AT;
        for range in &self.ranges {
            if range.contains(&gpa) {
                return Some((before + gpa - range.start, range.end - gpa));
            }
            before += range.end - range.start;
        }
        None
    }

    /// Writes a page of RAM. What is not RAM is left out.
    pub(super) fn write(&mut self, gpa: u64, page: &[u8]) -> Result<()> {
        let Some((at, _)) = self.place(gpa) else { return Ok(()) };
        self.file.file().write_all_at(page, at).or_failed("write", self.file.path())
    }

    /// A word of RAM.
    pub(super) fn read(&self, gpa: u64) -> Option<u64> {
        let (at, _) = self.place(gpa)?;
        let mut bytes = [0; 8];
        self.file.file().read_exact_at(&mut bytes, at).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    /// A mapping's pieces that are in the file, and where. Registers of devices are mapped too; they are not.
    fn pieces(&self, mapping: Mapping) -> impl Iterator<Item = (u64, Mapping)> {
        self.ranges.iter().filter_map(move |range| {
            let start = range.start.max(mapping.physical);
            let end = range.end.min(mapping.physical.saturating_add(mapping.length));
            let length = end.checked_sub(start).filter(|length| *length != 0)?;
            let linear = mapping.linear.wrapping_add(start - mapping.physical);
            Some((self.place(start)?.0, Mapping { linear, physical: start, length }))
        })
    }

    /// The note that Linux keeps for who reads its dump: it has pages of its own ("VMCOREINFO" in Linux' documentation).
    fn linux_note(&self) -> Option<Vec<u8>> {
        const NAME: &[u8; 12] = b"VMCOREINFO\0\0";
        const MAX: u32 = 4096;
        let pages = self.ranges.iter().flat_map(|range| range.clone().step_by(PAGE));
        pages.into_iter().find_map(|page| {
            let mut head = [0; 24];
            self.file.file().read_exact_at(&mut head, self.place(page)?.0).ok()?;
            let (sizes, name) = head.split_at(12);
            let (name_size, sizes) = sizes.split_first_chunk()?;
            let (size, kind) = sizes.split_first_chunk()?;
            let size = u32::from_le_bytes(*size);
            let is_note = name == NAME && u32::from_le_bytes(*name_size) == 11 && kind == [0; 4];
            let (at, left) = self.place(page + head.len() as u64)?;
            if !is_note || size > MAX || u64::from(size) > left {
                return None;
            }
            let mut text = vec![0; size as usize];
            self.file.file().read_exact_at(&mut text, at).ok()?;
            text.starts_with(b"OSRELEASE=").then(|| note(b"VMCOREINFO", 0, &text))
        })
    }

    /// Writes what is before the RAM, and gives the file its name; whether all mappings have their place.
    pub(super) fn finish(self, cpus: &[Registers], mappings: &[Mapping]) -> Result<bool> {
        const NOTE: u32 = 4;
        const LOAD: u32 = 1;
        const ALL: u32 = 7;
        let mut notes: Vec<u8> =
            (1..).zip(cpus).flat_map(|(thread, cpu)| notes(thread, cpu)).collect();
        notes.extend(self.linux_note().unwrap_or_default());
        let pieces = || mappings.iter().flat_map(|mapping| self.pieces(*mapping));
        let room = (RAM_AT as usize).saturating_sub(HEADER + PROGRAM_HEADER + notes.len());
        let most = MAX_SEGMENTS.min(room / PROGRAM_HEADER);
        let complete = pieces().nth(most).is_none();
        let loads = pieces().take(most).flat_map(|(at, piece)| {
            program_header(LOAD, ALL, at, [piece.linear, piece.physical], piece.length)
        });
        let loads: Vec<u8> = loads.collect();
        let notes_at = (HEADER + PROGRAM_HEADER + loads.len()) as u64;
        let of_notes = program_header(NOTE, 0, notes_at, [0, 0], notes.len() as u64);
        let count = 1 + (loads.len() / PROGRAM_HEADER) as u16;
        let all = [header(count), of_notes, loads, notes].concat();
        self.file.file().write_all_at(&all, 0).or_failed("write", self.file.path())?;
        self.file.complete()?;
        Ok(complete)
    }
}

fn header(count: u16) -> Vec<u8> {
    const CORE: u16 = 4;
    const X86_64: u16 = 62;
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend([CORE, X86_64].into_iter().flat_map(u16::to_le_bytes));
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend([0, HEADER as u64, 0].into_iter().flat_map(u64::to_le_bytes));
    bytes.extend(0_u32.to_le_bytes());
    let sizes = [HEADER as u16, PROGRAM_HEADER as u16, count, 0, 0, 0];
    bytes.extend(sizes.into_iter().flat_map(u16::to_le_bytes));
    bytes
}

fn program_header(
    kind: u32,
    flags: u32,
    at: u64,
    [linear, physical]: [u64; 2],
    length: u64,
) -> Vec<u8> {
    let mut bytes: Vec<u8> = [kind, flags].into_iter().flat_map(u32::to_le_bytes).collect();
    let rest = [at, linear, physical, length, length, 0];
    bytes.extend(rest.into_iter().flat_map(u64::to_le_bytes));
    bytes
}

/// A thread's notes: NT_PRSTATUS, NT_FPREGSET, and NT_X86_XSTATE where it has registers for that.
fn notes(thread: u32, cpu: &Registers) -> Vec<u8> {
    const FPREGSET: u32 = 2;
    const XSTATE: u32 = 0x202;
    let mut bytes = [status(thread, cpu), note(b"CORE", FPREGSET, &cpu.fpu.0)].concat();
    if let Some(upper) = cpu.upper {
        bytes.extend(note(b"LINUX", XSTATE, &xsave(&cpu.fpu, &upper)));
    }
    bytes
}

/// What XSAVE stores of the FPU, SSE and AVX (SDM "XSAVE Area"). Where Linux has XCR0 in a core is left free by the CPU.
fn xsave(fpu: &Fxsave, upper: &UpperHalves) -> Vec<u8> {
    const FPU_SSE_AVX: u64 = 7;
    const XCR0_AT: usize = 464;
    let mut area = fpu.0.to_vec();
    put(&mut area, XCR0_AT, &FPU_SSE_AVX.to_le_bytes());
    area.extend(FPU_SSE_AVX.to_le_bytes());
    area.resize(576, 0);
    area.extend(upper);
    area
}

fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
    let sizes = [name.len() as u32 + 1, description.len() as u32, kind];
    let mut bytes: Vec<u8> = sizes.into_iter().flat_map(u32::to_le_bytes).collect();
    bytes.extend(name);
    bytes.resize((bytes.len() + 1).next_multiple_of(4), 0);
    bytes.extend(description);
    bytes
}

/// NT_PRSTATUS: the registers of a thread in the order of Linux' `struct user_regs_struct`.
fn status(thread: u32, cpu: &Registers) -> Vec<u8> {
    const PRSTATUS: u32 = 1;
    let mut status = vec![0; STATUS];
    let [rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15] =
        cpu.general;
    let [cs, ss, ds, es, fs, gs] = cpu.segments.map(u64::from);
    let no_system_call = u64::MAX;
    let registers = [
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        no_system_call,
        cpu.rip,
        cs,
        cpu.rflags.into(),
        rsp,
        ss,
        cpu.bases[0],
        cpu.bases[1],
        ds,
        es,
        fs,
        gs,
    ];
    put(&mut status, THREAD_AT, &thread.to_le_bytes());
    let registers: Vec<u8> = registers.into_iter().flat_map(u64::to_le_bytes).collect();
    put(&mut status, REGISTERS_AT, &registers);
    note(b"CORE", PRSTATUS, &status)
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = to.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use object::elf::ProgramHeader64;
    use object::read::elf::{ElfFile64, ProgramHeader as _};
    use object::{Endianness, Object as _};

    use super::*;

    fn create(path: &std::path::Path, ranges: &[(u64, u64)]) -> Result<Core> {
        Core::new(Whole::begin(path)?, ranges)
    }

    #[test]
    fn another_reader_finds_memory_by_its_linear_address_and_a_note_for_each_cpu() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("core");
        let mut core = create(&path, &[(0, 0x8000), (0x10_0000, 0x8000)]).unwrap();
        core.write(0x10_2000, &[7; PAGE]).unwrap();
        core.write(0xa_0000, &[9; PAGE]).unwrap();
        assert_eq!(core.read(0x10_2ff8), Some(0x0707_0707_0707_0707));
        assert_eq!(core.read(0xa_0000), None, "no RAM is there");
        core.write(0x5000, &linux_note(b"OSRELEASE=6.1\n", 14)).unwrap();
        let mappings = [
            Mapping { linear: 0xffff_8880_0000_0000, physical: 0, length: 0x20_0000 },
            Mapping { linear: 0xffff_ffff_8000_0000, physical: 0x10_2000, length: 0x1000 },
            Mapping { linear: 0xffff_ffff_c000_0000, physical: 0xfee0_0000, length: 0x1000 },
        ];
        let plain = Registers { rip: 0x1234, ..Registers::default() };
        let cpus = [plain, Registers { upper: Some([0x5a; 256]), ..plain }];
        assert!(core.finish(&cpus, &mappings).unwrap());
        let bytes = std::fs::read(&path).unwrap();
        let elf = ElfFile64::<Endianness>::parse(bytes.as_slice()).unwrap();
        assert_eq!(elf.kind(), object::ObjectKind::Core);
        let endian = Endianness::Little;
        let [notes, low, high, load] = elf.elf_program_headers() else { panic!("no device") };
        let place = |load: &ProgramHeader64<_>| (load.p_vaddr(endian), load.p_paddr(endian));
        assert_eq!((place(low), low.p_filesz(endian)), ((0xffff_8880_0000_0000, 0), 0x8000));
        let behind = (0xffff_8880_0010_0000, 0x10_0000);
        assert_eq!((place(high), high.p_filesz(endian)), (behind, 0x8000), "behind the hole");
        assert_eq!(place(load), (0xffff_ffff_8000_0000, 0x10_2000));
        assert_eq!(load.data(endian, bytes.as_slice()).unwrap(), [7; PAGE]);
        // `crash` takes all before the first memory for headers and notes.
        assert_eq!(elf.elf_header().e_phoff.get(endian), 64);
        assert!(notes.p_offset(endian) + notes.p_filesz(endian) <= low.p_offset(endian));
        let mut notes = notes.notes(endian, bytes.as_slice()).unwrap().unwrap();
        for thread in 1..3_u32 {
            let mut next = || notes.next().unwrap().unwrap();
            let note = next();
            assert_eq!((note.name(), note.n_type(endian)), (b"CORE".as_slice(), 1));
            assert_eq!(note.desc()[THREAD_AT..THREAD_AT + 4], thread.to_le_bytes());
            assert_eq!(note.desc()[REGISTERS_AT + 16 * 8..][..8], 0x1234_u64.to_le_bytes());
            let note = next();
            assert_eq!((note.n_type(endian), note.desc().len()), (2, 512));
            if thread == 2 {
                let note = next();
                assert_eq!((note.name(), note.n_type(endian)), (b"LINUX".as_slice(), 0x202));
                assert_eq!(note.desc()[576..], [0x5a; 256]);
            }
        }
        let note = notes.next().unwrap().unwrap();
        assert_eq!((note.name(), note.n_type(endian)), (b"VMCOREINFO".as_slice(), 0));
        assert_eq!(note.desc(), b"OSRELEASE=6.1\n");
        assert!(notes.next().unwrap().is_none());
    }

    /// A page as Linux has it, with this size in its note.
    fn linux_note(text: &[u8], size: u32) -> Vec<u8> {
        let mut page = note(b"VMCOREINFO", 0, text);
        page.resize(PAGE, 0);
        put(&mut page, 4, &size.to_le_bytes());
        page
    }

    #[test]
    fn what_only_looks_like_linux_note_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let found = |page: &[u8], at: u64| {
            let core = create(&folder.path().join("core"), &[(0, 0x8000)]).unwrap();
            core.file.file().write_all_at(page, RAM_AT + at).unwrap();
            core.linux_note().is_some()
        };
        let right = linux_note(b"OSRELEASE=6.1\n", 14);
        assert!(found(&right, 0x7000));
        assert!(!found(&right, 0x10), "it has a page of its own");
        assert!(!found(&right[..20], 0x7000));
        assert!(!found(&linux_note(b"OSRELEASE=6.1\n", 4097), 0x2000));
        assert!(!found(&linux_note(b"OSRELEASE=6.1\n", 4096), 0x7000), "beyond RAM");
        assert!(!found(&linux_note(b"RELEASE=6.1\n", 12), 0x7000));
    }

    #[test]
    fn more_pieces_than_the_file_can_name_are_left_out_and_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("core");
        let core = create(&path, &[(0, 0x8000)]).unwrap();
        let one = Mapping { linear: 0, physical: 0, length: 0x1000 };
        assert!(!core.finish(&[Registers::default()], &vec![one; 0x1_0000]).unwrap());
        let bytes = std::fs::read(&path).unwrap();
        let elf = ElfFile64::<Endianness>::parse(bytes.as_slice()).unwrap();
        assert_eq!(elf.elf_program_headers().len(), 0xfffe);
    }
}

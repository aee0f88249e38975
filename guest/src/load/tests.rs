//! Whole images, damaged images, and what the plans promise.

use super::*;
use crate::memory_map::DEFAULT_ECAM;
use proptest::prelude::*;

const RSDP: Gpa = Gpa::new(0xe_0000);

/// A bzImage as the kernel's build makes it: 4 setup sectors and 64 KiB of kernel.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0u8; 5 * 512 + 0x1_0000];
    let mut set = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    set(0x1f1, &[4]);
    set(0x1f4, &0x1000u32.to_le_bytes());
    set(0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    set(0x202, b"HdrS\x0f\x02");
    set(0x211, &[1]);
    set(0x22c, &0x7fff_ffffu32.to_le_bytes());
    set(0x230, &0x20_0000u32.to_le_bytes());
    set(0x234, &[1, 21]);
    set(0x236, &0x7fu16.to_le_bytes());
    set(0x238, &2047u32.to_le_bytes());
    set(0x258, &0x100_0000u64.to_le_bytes());
    set(0x260, &0x200_0000u32.to_le_bytes());
    image
}

fn with(mut image: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

fn plan_in(image: &[u8], mib: u64, initrd: Option<usize>) -> Result<LoadPlan, LoadError> {
    plan_with(image, mib, initrd, &[])
}

fn plan_with(
    image: &[u8],
    mib: u64,
    initrd: Option<usize>,
    modules: &[ModuleRequest<'_>],
) -> Result<LoadPlan, LoadError> {
    let memory = MemoryMap::new(mib << 20, Some(DEFAULT_ECAM));
    plan(LoadRequest {
        kernel: image,
        initrd_size: initrd,
        modules,
        command_line: "console=ttyS0",
        memory: &memory,
        rsdp: RSDP,
    })
}

#[test]
fn a_linux_that_is_told_to_leave_its_local_apic_alone_finds_it_as_firmware_leaves_it() {
    let memory = MemoryMap::new(512 << 20, Some(DEFAULT_ECAM));
    let apics = |command_line| {
        let (image, rsdp) = (bzimage(), RSDP);
        let (kernel, initrd_size, modules, memory) = (&image[..], None, &[][..], &memory);
        let request = LoadRequest { kernel, initrd_size, modules, command_line, memory, rsdp };
        plan(request).unwrap().apics
    };
    for words in ["quiet nolapic", "disableapic"] {
        assert_eq!(apics(words), ApicStart { xapic: true, virtual_wire: true });
    }
    for words in ["acpi=off", "nox2apic quiet"] {
        assert_eq!(apics(words), ApicStart { xapic: true, virtual_wire: false });
    }
    assert_eq!(apics("noapic nolapic_timer"), ApicStart::default(), "it has a driver");
}

/// Guest memory as the plan leaves it, by address.
fn byte_at(plan: &LoadPlan, gpa: u64) -> u8 {
    let blob = plan.blobs.iter().find_map(|blob| {
        let offset = gpa.checked_sub(blob.at.as_u64())?;
        blob.bytes.get(offset as usize).copied()
    });
    blob.unwrap_or(0)
}

fn word_at(plan: &LoadPlan, gpa: u64, bytes: u64) -> u64 {
    (0..bytes).fold(0, |value, index| value | u64::from(byte_at(plan, gpa + index)) << (8 * index))
}

#[test]
fn a_bzimage_starts_in_64_bit_mode_at_its_preferred_address() {
    let plan = plan_in(&bzimage(), 512, Some(5_000_000)).unwrap();
    let kernel = &plan.copies[0];
    assert_eq!(
        (kernel.source, kernel.bytes.clone()),
        (Source::Kernel, 5 * 512..5 * 512 + 0x1_0000)
    );
    assert_eq!(kernel.to, Gpa::new(0x100_0000));
    assert_eq!(plan.start.rip, 0x100_0200);
    assert_eq!((plan.start.cr0 >> 31, plan.start.efer, plan.start.cr4), (1, 0x500, 0x20));
    assert!(plan.start.segments[1].access.long());
    assert_eq!((plan.start.segments[1].selector, plan.start.segments[3].selector), (0x10, 0x18));

    let zero = plan.start.gpr[6];
    let initrd = plan.copies[1].to.as_u64();
    assert_eq!(initrd, ((512 << 20) - 5_000_000) & !0xfff);
    assert_eq!(word_at(&plan, zero + 0x202, 4), u32::from_le_bytes(*b"HdrS").into());
    assert_eq!(word_at(&plan, zero + 0x210, 1), 0xff);
    assert_eq!(word_at(&plan, zero + 0x218, 4), initrd);
    assert_eq!(word_at(&plan, zero + 0x21c, 4), 5_000_000);
    assert_eq!(word_at(&plan, zero + 0x70, 8), 0xe_0000);
    assert_eq!(word_at(&plan, zero + 0x1e8, 1), 4);
    assert_eq!(word_at(&plan, zero + 0x2d0 + 2 * 20, 8), 0x10_0000);
    let line = word_at(&plan, zero + 0x228, 4);
    let text: Vec<u8> = (0..14).map(|index| byte_at(&plan, line + index)).collect();
    assert_eq!(text, b"console=ttyS0\0");
}

#[test]
fn a_kernel_without_a_64_bit_entry_starts_in_protected_mode_and_its_local_apics_in_xapic_mode() {
    let plan = plan_in(&with(bzimage(), 0x236, &[0, 0]), 512, Some(5_000_000)).unwrap();
    assert_eq!((plan.start.rip, plan.copies[0].to), (0x100_0000, Gpa::new(0x100_0000)));
    let start = plan.start;
    assert_eq!((start.cr0 & 0x8000_0001, start.cr3, start.cr4, start.efer), (1, 0, 0, 0));
    let [data, code, ..] = start.segments;
    assert_eq!((code.selector, code.access), (0x10, AccessRights::CODE32));
    assert_eq!((data.selector, data.limit), (0x18, u32::MAX));
    let gdt = start.gdtr.base.as_u64();
    assert_eq!(word_at(&plan, gdt + 0x10, 8), 0x00cf_9b00_0000_ffff);
    assert_eq!(word_at(&plan, start.gpr[6] + 0x214, 4), 0x100_0000, "code32_start");
    let own = ApicStart { xapic: true, virtual_wire: true };
    let of_64_bits = plan_in(&bzimage(), 512, None).unwrap();
    assert_eq!((plan.apics, of_64_bits.apics), (own, ApicStart::default()));
}

#[test]
fn the_first_page_tables_map_4_gib_one_to_one() {
    let plan = plan_in(&bzimage(), 64, None).unwrap();
    for address in [0u64, 0x100_0200, 0x7fff_f000, 0xffff_f000] {
        let mut table = plan.start.cr3;
        for level in [39, 30] {
            let entry = word_at(&plan, table + (address >> level & 511) * 8, 8);
            assert_eq!(entry & 0x83, 3);
            table = entry & !0xfff;
        }
        let entry = word_at(&plan, table + (address >> 21 & 511) * 8, 8);
        assert_eq!((entry & 0x83, entry & !0xfff), (0x83, address & !0x1f_ffff));
    }
    let gdt = plan.start.gdtr.base.as_u64();
    assert_eq!(word_at(&plan, gdt + 0x10, 8), 0x00af_9b00_0000_ffff);
    assert_eq!(plan.start.gdtr.limit, 31);
}

#[test]
fn a_kernel_that_does_not_fit_at_its_address_is_moved_if_it_can_be() {
    let high = with(bzimage(), 0x258, &0x1000_0000u64.to_le_bytes());
    let plan = plan_in(&high, 64, None).unwrap();
    assert_eq!(plan.copies[0].to, Gpa::new(0x20_0000), "the lowest multiple of its alignment");
    let fixed = with(high, 0x234, &[0]);
    let error = plan_in(&fixed, 64, None).unwrap_err();
    assert_eq!(
        error,
        LoadError::NoRoomAt { what: "the kernel", at: 0x1000_0000, size: 0x200_0000 }
    );
}

#[test]
fn the_initrd_keeps_below_the_kernels_limit_and_clear_of_the_kernel() {
    let low = with(bzimage(), 0x22c, &0x0fff_ffffu32.to_le_bytes());
    let plan = plan_in(&low, 512, Some(0x1000)).unwrap();
    assert_eq!(plan.copies[1].to, Gpa::new(0x0fff_f000));
    let below = with(bzimage(), 0x22c, &0x01ff_ffffu32.to_le_bytes());
    let plan = plan_in(&below, 512, Some(0x1000)).unwrap();
    assert_eq!(plan.copies[1].to, Gpa::new(0x00ff_f000), "below the kernel");
    let error = plan_in(&bzimage(), 64, Some(60 << 20)).unwrap_err();
    assert_eq!(error, LoadError::NoRoom { what: "the initrd", size: 60 << 20 });
}

#[test]
fn what_is_wrong_with_a_bzimage_is_told() {
    let short = bzimage()[..0x8000].to_vec();
    for (image, words) in [
        (with(bzimage(), 0x206, &[4, 2]), "Linux boot protocol 2.04, and 2.12 is needed"),
        (with(bzimage(), 0x211, &[0]), "the kernel is a zImage, which begins in real mode"),
        (short, "cut off: its headers promise 68096 bytes of kernel, and there are 32768"),
        (with(bzimage(), 0x1f4, &[0xff; 4]), "cut off"),
        (with(bzimage(), 0x1f4, &[1, 0, 0, 0]), "syssize is 0x1"),
        (with(bzimage(), 0x260, &[0xff; 4]), "init_size is 0xffffffff"),
        (with(bzimage(), 0x260, &[0; 4]), "init_size is 0x0"),
        (with(bzimage(), 0x230, &[3, 0, 0, 0]), "kernel_alignment is 0x3"),
        (bzimage()[..0x206].to_vec(), "cut off"),
        (b"MZ".to_vec(), "neither a Linux bzImage nor a multiboot kernel"),
        (with(bzimage(), 0x238, &[5, 0, 0, 0]), "cmdline has 13 bytes, and this kernel takes 5"),
    ] {
        let sentence = plan_in(&image, 512, None).unwrap_err().to_string();
        assert!(sentence.contains(words), "{sentence}");
    }
}

/// A multiboot header at offset 64 of an image.
fn multiboot(flags: u32, fields: [u32; 5], size: usize) -> Vec<u8> {
    let mut image = vec![0x90; size];
    let magic = 0x1bad_b002u32;
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let words = [&[magic, flags, checksum][..], &fields].concat();
    let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    image.splice(64..64 + bytes.len(), bytes);
    image
}

fn elf32(flags: u32) -> Vec<u8> {
    let image = multiboot(flags, [0; 5], 0x1000);
    let image = with(image, 0, b"\x7fELF\x01\x01\x01");
    let image = with(image, 24, &0xc010_0020u32.to_le_bytes());
    let image = with(image, 28, &0x200u32.to_le_bytes());
    let image = with(image, 42, &[32, 0, 2, 0]);
    let load = [1u32, 0x800, 0xc010_0000, 0x10_0000, 0x700, 0x3000, 5, 0x1000];
    let image = with(image, 0x220, &load.map(u32::to_le_bytes).concat());
    with(image, 0x200, &[4])
}

#[test]
fn a_kernel_with_address_fields_is_loaded_where_they_say() {
    let fields = [0x20_0040, 0x20_0000, 0x20_0800, 0x20_2000, 0x20_0100];
    let plan = plan_in(&multiboot(0x1_0003, fields, 0x1000), 16, Some(100)).unwrap();
    assert_eq!(
        plan.copies[0],
        Copy { source: Source::Kernel, bytes: 0..0x800, to: Gpa::new(0x20_0000) }
    );
    assert_eq!((plan.start.rip, plan.start.gpr[0]), (0x20_0100, 0x2bad_b002));
    assert_eq!((plan.start.cr0 & 0x8000_0001, plan.start.efer), (1, 0));
    assert!(plan.start.segments[1].access.default_32());

    let info = plan.start.gpr[3];
    assert_eq!(word_at(&plan, info, 4), 0x4d);
    assert_eq!((word_at(&plan, info + 4, 4), word_at(&plan, info + 8, 4)), (639, 15 << 10));
    assert_eq!(word_at(&plan, info + 20, 4), 1);
    let module = word_at(&plan, info + 24, 4);
    let initrd = plan.copies[1].to.as_u64();
    assert_eq!((word_at(&plan, module, 4), word_at(&plan, module + 4, 4)), (initrd, initrd + 100));
    let (map, length) = (word_at(&plan, info + 48, 4), word_at(&plan, info + 44, 4));
    assert_eq!(length, 4 * 24);
    assert_eq!((word_at(&plan, map, 4), word_at(&plan, map + 12, 8)), (20, 0x9_fc00));
    assert_eq!(byte_at(&plan, word_at(&plan, info + 16, 4)), b'c');
}

fn text_at(plan: &LoadPlan, gpa: u64) -> String {
    (gpa..).map(|at| char::from(byte_at(plan, at))).take_while(|c| *c != '\0').collect()
}

#[test]
fn modules_follow_the_initrd_with_their_words() {
    let fields = [0x20_0040, 0x20_0000, 0x20_0800, 0x20_2000, 0x20_0100];
    let kernel = multiboot(0x1_0003, fields, 0x1000);
    let module = |size, words| ModuleRequest { size, words };
    let modules = [module(5000, "first one"), module(0, ""), module(7, "last")];
    let plan = plan_with(&kernel, 16, Some(100), &modules).unwrap();
    let info = plan.start.gpr[3];
    assert_eq!(word_at(&plan, info + 20, 4), 4);
    let sources = [Source::Initrd, Source::Module(0), Source::Module(1), Source::Module(2)];
    let expected = [(100, ""), (5000, "first one"), (0, ""), (7, "last")];
    let table = word_at(&plan, info + 24, 4);
    for (index, (source, (size, words))) in sources.into_iter().zip(expected).enumerate() {
        let copy = plan.copies.iter().find(|copy| copy.source == source).unwrap();
        let field = |number: u64| word_at(&plan, table + 16 * index as u64 + 4 * number, 4);
        assert_eq!((field(0), field(1) - field(0)), (copy.to.as_u64(), size), "{source:?}");
        assert_eq!((copy.bytes.len() as u64, copy.to.is_aligned(4096)), (size, true));
        assert_eq!(text_at(&plan, field(2)), words, "{source:?}");
    }
    assert_eq!(text_at(&plan, word_at(&plan, info + 16, 4)), "console=ttyS0");
}

#[test]
fn modules_that_cannot_be_given_are_refused() {
    let module = ModuleRequest { size: 1, words: "" };
    let error = plan_with(&bzimage(), 64, None, &[module]).unwrap_err();
    assert!(error.to_string().starts_with("this is a bzImage, and modules are for"), "{error}");
    assert!(plan_with(&elf32(0), 16, None, &[module; 16]).is_ok());
    let error = plan_with(&elf32(0), 16, Some(1), &[module; 16]).unwrap_err();
    assert_eq!(error, LoadError::Modules { count: 17, limit: 16 });
    let large = ModuleRequest { size: 16 << 20, words: "" };
    let error = plan_with(&elf32(0), 16, None, &[large]).unwrap_err();
    assert_eq!(error, LoadError::NoRoom { what: "a module", size: 16 << 20 });
    let words = "x".repeat(0x8000);
    let long = ModuleRequest { size: 1, words: &words };
    let error = plan_with(&elf32(0), 16, None, &[long]).unwrap_err();
    assert!(matches!(error, LoadError::CommandLine { length: 0x800e, .. }), "{error:?}");
}

#[test]
fn elf_kernels_are_loaded_by_physical_address_and_entered_there() {
    let plan32 = plan_in(&elf32(0), 16, None).unwrap();
    let kernel = Copy { source: Source::Kernel, bytes: 0x800..0xf00, to: Gpa::new(0x10_0000) };
    assert_eq!((&plan32.copies[..], plan32.start.rip), (&[kernel.clone()][..], 0x10_0020));

    let image = multiboot(0, [0; 5], 0x1000);
    let image = with(image, 0, b"\x7fELF\x02\x01\x01");
    let image = with(image, 24, &0xffff_ffff_8010_0020u64.to_le_bytes());
    let image = with(image, 32, &0x200u64.to_le_bytes());
    let image = with(image, 54, &[56, 0, 1, 0]);
    let words = [0x5_0000_0001u64, 0x800, 0xffff_ffff_8010_0000, 0x10_0000, 0x700, 0x3000, 0x1000];
    let image = with(image, 0x200, &words.map(u64::to_le_bytes).concat());
    let plan64 = plan_in(&image, 16, None).unwrap();
    assert_eq!((&plan64.copies[..], plan64.start.rip), (&[kernel][..], 0x10_0020));
}

#[test]
fn what_is_wrong_with_a_multiboot_kernel_is_told() {
    let at = |load| multiboot(0x1_0003, [load + 0x40, load, 0, 0, load], 0x1000);
    for (image, words) in [
        (elf32(4), "requires features that are not offered (flags 0x4)"),
        (multiboot(3, [0; 5], 0x1000), "neither a Linux bzImage nor a multiboot kernel"),
        (with(elf32(0), 0x230, &[0xff; 4]), "p_filesz"),
        (with(elf32(0), 0x224, &[0xff; 4]), "cut off"),
        (with(elf32(0), 28, &[0xff; 4]), "cut off"),
        (with(elf32(0), 24, &[0; 4]), "e_entry is 0x0"),
        (with(elf32(0), 0x22c, &[0, 0, 8, 0]), "no free memory"),
        (at(0xf_f000), "no free memory"),
        (at(0x100_0000), "no free memory"),
        (multiboot(0x1_0003, [0, 8, 0, 0, 0], 0x1000), "load_addr is 0x8"),
        (multiboot(0x1_0003, [0x40, 0, 0x2000, 0, 0], 0x1000), "cut off"),
    ] {
        let sentence = plan_in(&image, 16, None).unwrap_err().to_string();
        assert!(sentence.contains(words), "{sentence}");
    }
}

fn ends(plan: &LoadPlan) -> Vec<GpaRange> {
    let copies = plan.copies.iter().map(|c| GpaRange { start: c.to, length: c.bytes.len() as u64 });
    let blobs = plan.blobs.iter().map(|b| GpaRange { start: b.at, length: b.bytes.len() as u64 });
    copies.chain(blobs).collect()
}

proptest! {
    #[test]
    fn a_damaged_image_is_refused_or_stays_in_the_guests_memory(
        base in 0usize..3,
        damage in proptest::collection::vec((0usize..0x290, any::<u8>()), 0..6),
        length in 0usize..0x1_0a00,
        initrd in proptest::option::of(0usize..1 << 24),
        sizes in proptest::collection::vec(0usize..1 << 20, 0..4),
        mib in 8u64..64,
    ) {
        let modules = sizes.iter().map(|size| ModuleRequest { size: *size, words: "a b" });
        let modules: Vec<_> = if base == 0 { Vec::new() } else { modules.collect() };
        let mut image = match base {
            0 => bzimage(),
            1 => elf32(0),
            _ => multiboot(0x1_0003, [0x20_0040, 0x20_0000, 0, 0, 0x20_0100], 0x1000),
        };
        for (at, value) in damage {
            image[at] = value;
        }
        if length & 1 == 0 {
            image.truncate(length);
        }
        if let Ok(plan) = plan_with(&image, mib * 2, initrd, &modules) {
            let memory = MemoryMap::new(mib << 21, Some(DEFAULT_ECAM));
            let parts = ends(&plan);
            for (index, part) in parts.iter().enumerate() {
                prop_assert!(memory.ram().iter().any(|run| run.contains(*part)), "{:?}", part);
                prop_assert!(!part.overlaps(GpaRange::between(0xa_0000, 0x10_0000)));
                prop_assert!(parts[index + 1..].iter().all(|other| !other.overlaps(*part)));
            }
            for copy in plan.copies.iter().filter(|copy| copy.source == Source::Kernel) {
                prop_assert!(copy.bytes.end <= image.len());
            }
        }
    }

    #[test]
    fn any_bytes_are_refused_or_planned(image in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = plan_in(&image, 16, None);
    }
}

#[test]
fn a_kernel_whose_last_paragraph_is_not_whole_is_loaded() {
    let whole = bzimage();
    for (less, taken) in [(0, true), (1, true), (15, true), (16, false)] {
        let image = &whole[..whole.len() - less];
        let read = super::linux::Header::read(image);
        assert_eq!(read.is_ok(), taken, "{less} bytes less");
        if let Ok(header) = read {
            assert_eq!(header.payload_size(), 0x1_0000 - less);
        }
    }
}

#[test]
fn what_firmware_starts_is_refused_by_its_name() {
    let refusal = |signatures: &[(usize, &[u8])]| {
        let mut image = vec![0; 0x9000];
        for (at, signature) in signatures {
            image[*at..*at + signature.len()].copy_from_slice(signature);
        }
        for_firmware(&image)
    };
    let sector: (usize, &[u8]) = (510, &[0x55, 0xaa]);
    assert_eq!(refusal(&[]), LoadError::UnknownFormat);
    let sentence = refusal(&[sector]).to_string();
    assert_eq!(
        sentence,
        "this is a boot sector, which calls the BIOS, and a guest has neither BIOS nor UEFI: give a Linux bzImage or a \
         multiboot kernel"
    );
    for (signatures, name) in [
        (&[sector, (0x8001, b"CD001")][..], "the image of a disc"),
        (&[(0, b"MZ"), (0x3c, &[0x80]), (0x80, b"PE\0\0")], "a program for UEFI"),
    ] {
        assert_eq!(refusal(signatures), LoadError::NeedsFirmware(name));
    }
    assert_eq!(refusal(&[(0, b"MZ"), (0x3c, &[0xff; 4])]), LoadError::UnknownFormat);
    assert_eq!(for_firmware(&[]), LoadError::UnknownFormat);
}

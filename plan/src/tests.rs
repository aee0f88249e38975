//! Row by row: a configuration, a machine, and what is said of the two.

use std::collections::BTreeMap;

use arch::machine::{ConfigSpace, Width};
use arch::{ApicId, Hpa};

use guest::lines::Wired;
use pci::claims::Owners;

use super::*;
use crate::memory::{MAX_BLOCKS, identity};

/// Configuration space made of memory.
#[derive(Clone, Default)]
struct Space(BTreeMap<Bdf, [u8; 256]>);

impl ConfigSpace for Space {
    fn read(&self, function: Bdf, offset: u16, width: Width) -> u32 {
        let Some(bytes) = self.0.get(&function) else { return width.mask() as u32 };
        let at = usize::from(offset);
        let bytes = bytes.get(at..at + usize::from(width.bytes())).unwrap_or(&[]);
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    fn write(&mut self, _: Bdf, _: u16, _: Width, _: u32) {}
}

/// A machine that can be changed.
#[derive(Clone)]
struct Fake {
    vendor: Vendor,
    lacks: Option<(InterruptMode, &'static str)>,
    cpus: Vec<Cpu>,
    free: FrameAllocator,
    identity_ram: Option<Vec<GpaRange>>,
    space: Space,
    reserved: Vec<Bdf>,
    uncovered: Vec<Bdf>,
    no_iommu: Option<&'static str>,
    owners: Owners,
    /// An interrupt of the ISA bus, and where the firmware has moved it.
    moved: Option<(u8, u32)>,
}

const MIB: u64 = 1 << 20;

fn range(start: u64, length: u64) -> HpaRange {
    HpaRange { start: Hpa::new(start), length }
}

/// Four CPUs on three cores, 1 GiB in one piece, with an IOMMU: an NVMe (4), a USB controller (5), two
/// functions of one device (6), and a chipset's functions (1f): ISA bridge, SATA, SMBus.
fn machine() -> Fake {
    let mut fake = Fake {
        vendor: Vendor::VtX,
        lacks: None,
        cpus: (0..4).map(|n| Cpu { id: ApicId(n), started: true, core: Some(n % 3) }).collect(),
        free: FrameAllocator::new(&[range(16 * MIB, 1024 * MIB)], &[]),
        identity_ram: None,
        space: Space::default(),
        reserved: Vec::new(),
        uncovered: Vec::new(),
        no_iommu: None,
        owners: Owners::default(),
        moved: None,
    };
    for (device, function, class, multi) in [
        (0, 0, 0x06_0000_u32, false),
        (4, 0, 0x01_0802, false),
        (5, 0, 0x0c_0330, false),
        (6, 0, 0x02_0000, true),
        (6, 1, 0x02_0000, true),
        (0x1f, 0, 0x06_0100, true),
        (0x1f, 2, 0x01_0601, true),
        (0x1f, 3, 0x0c_0500, true),
    ] {
        let mut bytes = [0; 256];
        bytes[..4].copy_from_slice(&0x1234_8086_u32.to_le_bytes());
        bytes[8..12].copy_from_slice(&(class << 8).to_le_bytes());
        bytes[0xe] = u8::from(multi) << 7;
        bytes[0x3d] = u8::from(class >> 16 != 6);
        fake.space.0.insert(Bdf::new(0, device, function), bytes);
    }
    fake
}

impl Fake {
    fn plan(&self, text: &str) -> Plan {
        let functions: Vec<Function> = pci::scan(&self.space, 0, [0]).collect();
        let kernel = kernel();
        let machine = Machine {
            vendor: self.vendor,
            lacks: &|mode| self.lacks.filter(|lack| lack.0 == mode).map(|lack| lack.1.to_string()),
            cpus: &self.cpus,
            free: self.free.clone(),
            identity_ram: self.identity_ram.as_deref(),
            ecam: None,
            space: &self.space,
            functions: &functions,
            groups: &Groups::new(&self.space, &functions),
            reserved: &|bdf| self.reserved.contains(&bdf).then_some(range(0x7c00_0000, 0x1000)),
            covered: &|bdf| !self.uncovered.contains(&bdf),
            no_iommu: self.no_iommu,
            has_line: &|gsi| gsi < 24,
            claims: &pci::Claims::record(&mut self.space.clone(), &functions, self.owners.clone()),
            isa_line: &|irq| Wired {
                gsi: self.moved.filter(|moved| moved.0 == irq).map_or(irq.into(), |moved| moved.1),
                active_low: false,
                level: false,
            },
            console_irq: Some(4),
            files: &|_, path| match path {
                "k" => Ok(File { size: kernel.len(), bytes: &kernel }),
                "empty" => Ok(File { size: 0, bytes: &[] }),
                "noise" => Ok(File { size: 4, bytes: &[1, 2, 3, 4] }),
                "large" => Ok(File { size: 200 << 20, bytes: &[] }),
                _ => Err("it is not there".into()),
            },
        };
        check(&config::parse(text).unwrap(), &machine)
    }

    #[track_caller]
    fn says(&self, text: &str, expected: &[&str]) {
        let plan = self.plan(text);
        let said: Vec<_> = plan.refusals.iter().map(ToString::to_string).collect();
        assert_eq!(said, expected);
    }
}

/// A multiboot kernel of 64 bytes at 1 MiB, by its address fields.
fn kernel() -> Vec<u8> {
    const AT: u32 = 0x10_0000;
    let (magic, flags) = (0x1bad_b002_u32, 1_u32 << 16);
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    let words = [magic, flags, checksum, AT, AT, AT + 64, 0, AT];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(64, 0);
    bytes
}

/// A guest on these lines: name 2, cpus 3, memory 4, kernel 5, `further` from 6 on.
fn guest(further: &str) -> String {
    format!("[[guest]]\nname = \"a\"\ncpus = [0]\nmemory = \"64M\"\nkernel = \"k\"\n{further}\n")
}

/// The same with an own name and CPU, behind the first: six lines further down.
fn other(cpu: u32, further: &str) -> String {
    guest(further).replace("\"a\"", "\"b\"").replace("[0]", &format!("[{cpu}]"))
}

#[test]
fn what_fits_is_not_refused() {
    let plan = machine().plan(&guest("devices = [\"00:04.0\"]"));
    assert_eq!((plan.refusals, plan.remarks), (vec![], vec![]));
    assert_eq!(plan.functions, [[Bdf::new(0, 4, 0)]]);
}

#[test]
fn every_refusal_of_a_device_says_which_and_what_to_do() {
    let list = "00:00.0, 00:04.0, 00:05.0, 00:06.0, 00:06.1, 00:1f.0, 00:1f.2, 00:1f.3";
    for (key, index) in
        [("devices = [\"00:09.0\"]", 6), ("devices=\"all\"\nexcept=[\"00:09.0\"]", 7)]
    {
        let name = if index == 6 { "devices" } else { "except" };
        let sentence = format!(
            "nexit.toml, line {index}: guest a: {name} names 00:09.0, but the machine has no such PCI \
             function; it has {list}"
        );
        let plan = machine().plan(&guest(key));
        assert_eq!(plan.refusals[0].to_string(), sentence);
    }
    machine().says(&guest("devices = [\"00:1f.0\"]"), &[
        "nexit.toml, line 6: guest a: devices: 00:1f.0 is a bridge or an IOMMU: assign the functions behind \
         it instead",
    ]);
    machine().says(&guest("devices = [\n\"00:04.0\",\n\"00:06.0\"]"), &[
        "nexit.toml, line 8: guest a: devices: 00:06.0 cannot be assigned without 00:06.1, as nothing keeps \
         the two from reaching each other (no Access Control Services): give 00:06.0, 00:06.1 to one guest, \
         or none of them to any",
    ]);
}

#[test]
fn a_group_that_is_divided_is_refused_once_however_many_have_a_part() {
    let text = guest("devices = [\"00:06.0\"]") + &other(2, "devices = [\"00:06.1\"]");
    assert_eq!(machine().plan(&text).refusals.len(), 1);
    // The bridge and the SMBus controller of the chipset may stay behind.
    machine().says(&guest("devices = [\"00:1f.2\"]"), &[]);
}

#[test]
fn memory_of_the_firmware_keeps_a_device_back_but_not_a_usb_controller() {
    let mut fake = machine();
    fake.reserved = vec![Bdf::new(0, 4, 0), Bdf::new(0, 5, 0)];
    let plan = fake.plan(&guest("devices = [\"00:04.0\", \"00:05.0\"]"));
    let [refusal] = plan.refusals.as_slice() else { panic!("{plan:?}") };
    assert_eq!(
        refusal.to_string(),
        "nexit.toml, line 6: guest a: devices: 00:04.0 cannot be assigned: the firmware keeps using it for \
         DMA to 0x7c000000 (an RMRR of its DMAR table): remove it"
    );
    let [remark] = plan.remarks.as_slice() else { panic!("{plan:?}") };
    assert_eq!(
        remark.words().to_string(),
        "guest a: 00:05.0 is taken from the firmware, which used it for DMA to 0x7c000000 (an RMRR)"
    );
}

#[test]
fn a_device_that_no_unit_covers_cannot_be_kept_apart() {
    let fake = Fake { uncovered: vec![Bdf::new(0, 4, 0)], ..machine() };
    fake.says(
        &guest("devices = [\"00:04.0\", \"00:05.0\"]"),
        &["nexit.toml, line 6: guest a: devices: 00:04.0 cannot be assigned: no IOMMU unit covers 00:04.0: \
           remove it, or update the firmware"],
    );
}

#[test]
fn without_an_iommu_a_guest_with_devices_is_refused_once_unless_it_is_trusted() {
    let mut fake = machine();
    fake.no_iommu = Some("it is asleep");
    // What is not isolated is not the reason then.
    let text = guest("devices = [\"00:04.0\", \"00:06.0\"]");
    fake.says(&text, &[
        "nexit.toml, line 6: guest a: devices: 00:04.0 cannot be assigned: the machine has no usable IOMMU, \
         so the device could reach all memory (it is asleep). Repair that, or write unsafe_no_iommu = true to \
         trust the guest with the whole machine",
    ]);
    fake.says(&guest(""), &[]);
    fake.identity_ram = Some(vec![GpaRange::between(0, 64 * MIB)]);
    fake.says(&text, &[]);
}

#[test]
fn all_leaves_out_what_no_guest_wants_and_says_so() {
    let plan = machine().plan(&guest("devices = \"all\""));
    let expected = [(4, 0), (5, 0), (6, 0), (6, 1), (0x1f, 2)];
    assert_eq!(plan.functions, [expected.map(|(d, f)| Bdf::new(0, d, f))]);
    let [remark] = plan.remarks.as_slice() else { panic!("{plan:?}") };
    assert!(remark.to_string().contains("devices = \"all\" is without 00:1f.3, SMBus"), "{remark}");
    // Another guest has it.
    let text = guest("devices = \"all\"\nexcept = [\"00:1f.2\"]");
    let plan = machine().plan(&(text + &other(2, "devices = [\"00:1f.3\"]")));
    assert!(
        !plan.remarks.iter().any(|remark| remark.to_string().contains("is without")),
        "{plan:?}"
    );
}

#[test]
fn cpus_that_are_not_there_or_do_not_start_are_named_each() {
    let mut fake = machine();
    fake.cpus[3].started = false;
    fake.says(&guest("").replace("[0]", "[9, 1, 3]"), &[
        "nexit.toml, line 3: guest a: cpus names CPU 9, but the machine has 4, counted from 0: choose among \
         those",
        "nexit.toml, line 3: guest a: cpus names CPU 3 (APIC identifier 3), which does not start: choose \
         another",
    ]);
    fake.cpus = (0..80).map(|n| Cpu { id: ApicId(n), started: true, core: None }).collect();
    let many: Vec<String> = (0..65).map(|n| n.to_string()).collect();
    fake.says(&guest("").replace("[0]", &format!("[{}]", many.join(","))), &[
        "nexit.toml, line 3: guest a: cpus has 65 CPUs, and 64 is the most for a guest: give it fewer",
    ]);
}

#[test]
fn threads_of_one_core_in_two_guests_are_refused_or_remarked_on_where_that_is_accepted() {
    let plan =
        |accepts: &str, cpu| machine().plan(&(accepts.to_owned() + &guest("") + &other(cpu, "")));
    let other_core = plan("", 1);
    assert_eq!((other_core.refusals, other_core.remarks), (vec![], vec![]));
    let refused = plan("", 3);
    let [refusal] = refused.refusals.as_slice() else { panic!("{refused:?}") };
    assert_eq!(
        refusal.to_string(),
        "nexit.toml, line 3: guest a: cpus has CPU 0, and guest b has CPU 3, two threads of one core: each \
         slows the other down and can learn of it: give both to one guest, or accept it by share_cores = true"
    );
    let accepted = plan("share_cores = true\n", 3);
    let [remark] = accepted.remarks.as_slice() else { panic!("{accepted:?}") };
    assert_eq!(accepted.refusals, []);
    assert_eq!(
        remark.to_string(),
        "nexit.toml, line 4: guest a: cpus has CPU 0, and guest b has CPU 3, two threads of one core: each \
         slows the other down and can learn of it"
    );
}

#[test]
fn memory_is_handed_out_guest_by_guest_and_what_is_left_is_said() {
    let text = guest("").replace("64M", "1000M") + &other(1, "");
    machine().says(&text, &[
        "nexit.toml, line 10: guest b: memory = 64 MiB is not there (in at most 32 pieces): the machine has 24 \
         MiB free: give the guests less",
    ]);
    // What was refused is put back.
    let text = guest("").replace("64M", "2G") + &other(1, "").replace("64M", "1G");
    assert_eq!(machine().plan(&text).refusals.len(), 1);
    let shared = "[[shared]]\nname = \"s\"\nsize = \"1G\"\nguests = [\"a\", \"b\"]\n";
    machine().says(
        &(guest("") + &other(1, "") + shared),
        &[
            "nexit.toml, line 4: guest a: memory = 64 MiB is not there (in at most 32 pieces): the machine has \
             0 MiB free: give the guests less",
            "nexit.toml, line 10: guest b: memory = 64 MiB is not there (in at most 32 pieces): the machine has \
             0 MiB free: give the guests less",
        ],
    );
    let large = shared.replace("1G", "4G");
    machine().says(&(guest("") + &other(1, "") + &large), &[
        "nexit.toml, line 15: shared s: size = 4194304 KiB is not there in one piece: the machine has 1024 MiB \
         free",
    ]);
}

#[test]
fn memory_in_too_many_pieces_is_not_there() {
    let pieces = |count: u64| {
        let usable: Vec<_> = (1..=count).map(|n| range(n * 8 * MIB, 2 * MIB)).collect();
        let free = FrameAllocator::new(&usable, &[]);
        Fake { free, ..machine() }.plan(&guest("").replace("64M", &format!("{}M", 2 * count)))
    };
    assert_eq!(pieces(MAX_BLOCKS as u64).refusals, []);
    assert_eq!(pieces(MAX_BLOCKS as u64 + 1).refusals.len(), 1);
}

#[test]
fn an_identity_mapped_guest_has_the_machines_own_memory_without_the_image() {
    let usable = [range(0, 0x9_f000), range(MIB, 63 * MIB), range(128 * MIB, 64 * MIB)];
    let image = range(2 * MIB, 3 * MIB);
    let found = |text: &str| identity(&config::parse(text).unwrap(), usable.into_iter(), image);
    assert_eq!(found(&guest("")), None);
    let runs = found(&guest("unsafe_no_iommu = true")).unwrap().unwrap();
    let expected = [(0, 2 * MIB), (6 * MIB, 64 * MIB)];
    assert_eq!(runs, expected.map(|(start, end)| GpaRange::between(start, end)));
    let error =
        found(&guest("unsafe_no_iommu = true").replace("64M", "256M")).unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "nexit.toml, line 4: guest a: memory = 256 MiB is not there: the machine has 124 MiB below that address"
    );
}

#[test]
fn files_that_are_missing_empty_or_no_kernel_are_named_by_their_key() {
    for (key, file, line, words) in [
        ("kernel = \"k\"", "kernel = \"gone\"", 5, "kernel = \"gone\": it is not there"),
        (
            "kernel = \"k\"",
            "kernel = \"noise\"",
            5,
            "kernel = \"noise\": this is neither a Linux bzImage",
        ),
        (
            "kernel = \"k\"",
            "kernel = \"empty\"",
            5,
            "kernel = \"empty\": the file is empty: copy it again",
        ),
        (
            "#",
            "initrd = \"empty\"",
            6,
            "initrd = \"empty\": the file is empty: copy it again, or remove initrd",
        ),
        ("#", "initrd = \"gone\"", 6, "initrd = \"gone\": it is not there"),
        ("#", "initrd = \"large\"", 4, "kernel = \"k\": the initrd needs 0xc800000 bytes"),
        ("#", "modules = [\"k a\",\n\"gone b\"]", 7, "modules = \"gone\": it is not there"),
    ] {
        let plan = machine().plan(&guest("#").replace(key, file));
        let [refusal] = plan.refusals.as_slice() else { panic!("{file}: {plan:?}") };
        let start = format!("nexit.toml, line {line}: guest a: {words}");
        assert!(refusal.to_string().starts_with(&start), "{refusal}");
    }
}

#[test]
fn a_mode_is_refused_where_the_cpu_lacks_it_and_a_cpu_where_it_lacks_all() {
    let posted = guest("interrupts = \"posted\"");
    machine().says(&posted, &[]);
    Fake { vendor: Vendor::AmdV, ..machine() }.says(&posted, &[
        "nexit.toml, line 6: guest a: interrupts = \"posted\" is for VT-x: on this CPU, with AMD-V, choose \
         \"exitless\" or \"exiting\"",
    ]);
    let fake = Fake { lacks: Some((InterruptMode::Posted, "no posting")), ..machine() };
    fake.says(
        &posted,
        &["nexit.toml, line 6: guest a: interrupts = \"posted\": no posting, or choose \
         \"exitless\" or \"exiting\""],
    );
    let fake = Fake { lacks: Some((InterruptMode::Exitless, "no EPT")), ..machine() };
    fake.says(&(guest("") + &other(1, "")), &["no EPT"]);
}

#[test]
fn lines_and_ports_are_checked_against_the_machine() {
    machine().says(&guest("devices = [\"00:04.0\"]\nintx = [\"00:04.0=40\", \"00:05.0=16\"]"), &[
        "nexit.toml, line 7: guest a: no I/O APIC has interrupt line 40: name another one in intx",
        "nexit.toml, line 7: guest a: intx names 00:05.0, which has no interrupt pin or is not among the \
         guest's devices: remove it there",
    ]);
    machine().says(&guest("io_ports = [\"0x300\", \"0xcf8-0xcff\", \"0x3f8\"]"), &[
        "nexit.toml, line 6: guest a: io_ports names 0xcf8, which is a virtual device's or the hypervisor's \
         own: remove it",
        "nexit.toml, line 6: guest a: io_ports names 0x3f8, which is a virtual device's or the hypervisor's \
         own: remove it",
    ]);
}

#[test]
fn a_bus_that_is_full_has_no_room_for_shared_memory() {
    let mut fake = machine();
    let nvme = fake.space.0[&Bdf::new(0, 4, 0)];
    fake.space.0 = (1..32).map(|device| (Bdf::new(0, device, 0), nvme)).collect();
    let all = guest("devices = \"all\"");
    fake.says(&all, &[]);
    let shared = "[[shared]]\nname = \"s\"\nsize = \"1M\"\nguests = [\"a\", \"b\"]\n";
    fake.says(
        &(all + &other(2, "") + shared),
        &["nexit.toml, line 6: guest a: no device number is left for shared memory: a guest's bus has 31"],
    );
}

#[test]
fn nothing_stops_at_the_first_thing_that_is_wrong() {
    let text =
        guest("devices = [\"00:09.0\", \"00:06.0\"]\ninitrd = \"empty\"\nio_ports = [\"0xcf8\"]")
            .replace("[0]", "[7]")
            .replace("64M", "9G");
    let keys: Vec<_> = machine().plan(&text).refusals.iter().map(|refusal| refusal.key).collect();
    assert_eq!(keys, ["devices", "devices", "cpus", "io_ports", "memory", "initrd"]);
}

#[test]
fn what_needs_no_machine_is_refused_without_one() {
    let files: files::Source<'_> = &|_, _| Err("it is not there".into());
    let text = guest("io_ports = [\"0xcf8\"]\nintx = [\"00:04.0=16\"]");
    let refusals = check_alone(&config::parse(&text).unwrap(), files);
    let keys: Vec<_> = refusals.iter().map(|refusal| refusal.key).collect();
    assert_eq!(keys, ["io_ports", "kernel", "intx"]);
    let all = text.replace("io_ports = [\"0xcf8\"]", "devices = \"all\"");
    assert_eq!(check_alone(&config::parse(&all).unwrap(), files).len(), 1, "it may be among all");
}

#[test]
fn a_cpu_without_what_all_need_says_where_to_switch_it_on() {
    let cpu = |vmx: bool, svm: bool, others: bool| {
        move |leaf| {
            let mut found = arch::machine::CpuidResult::default();
            match leaf {
                1 => found.ecx = u32::from(vmx) << 5 | u32::from(others) << 21,
                0x8000_0000 => found.eax = 0x8000_0008,
                0x8000_0001 => {
                    found.ecx = u32::from(svm) << 2;
                    found.edx = u32::from(others) << 20;
                }
                _ => {}
            }
            found
        }
    };
    assert_eq!(platform::vendor(cpu(true, false, true)), Ok(Vendor::VtX));
    assert_eq!(platform::vendor(cpu(false, true, true)), Ok(Vendor::AmdV));
    let refusal = platform::vendor(cpu(false, false, true)).unwrap_err().to_string();
    assert!(refusal.starts_with("the CPU shows neither VT-x"), "{refusal}");
    assert_eq!(platform::lacks(cpu(true, false, true)).count(), 0);
    let lacks: Vec<_> = platform::lacks(cpu(true, false, false)).map(|it| it.to_string()).collect();
    assert!(lacks[0].contains("no execute disable") && lacks[1].contains("no x2APIC"), "{lacks:?}");
}

#[test]
fn a_guest_has_the_low_window_of_segment_0_only() {
    let window = |segment, first, base| (segment, first, 255, Hpa::new(base));
    let low = memory::low_window([
        window(1, 0, 0xe000_0000),
        window(0, 64, 0xe000_0000),
        window(0, 0, 0x38_0000_0000),
        window(0, 0, 0xb000_0000),
    ]);
    assert_eq!(low.map(|ecam| (ecam.base.as_u64(), ecam.buses)), Some((0xb000_0000, 256)));
}

#[test]
fn a_bar_that_claims_ram_is_refused_and_all_goes_without_it() {
    let mut fake = machine();
    // BAR 0 of the NVMe; this space does not answer sizing, so its size is what it says: one byte pattern.
    let nvme = Bdf::new(0, 4, 0);
    if let Some(bytes) = fake.space.0.get_mut(&nvme) {
        bytes[0x10..0x14].copy_from_slice(&0xfff0_0000_u32.to_le_bytes());
    }
    fake.owners.memory.push((range(0xfff0_0000, 0x1000), "RAM"));
    let text = |devices: &str| {
        format!(
            "[[guest]]\nname=\"a\"\ncpus=[0]\nmemory=\"64M\"\nkernel=\"k\"\ndevices={devices}\n"
        )
    };
    fake.says(
        &text("[\"00:04.0\"]"),
        &["nexit.toml, line 6: guest a: devices: 00:04.0 cannot be assigned: its BAR 0 (memory 0xfff00000 to \
           0xffffffff) overlaps RAM (0xfff00000 to 0xfff00fff): update the firmware, or leave the device out"],
    );
    let plan = fake.plan(&text("\"all\""));
    assert!(plan.refusals.is_empty() && !plan.functions[0].contains(&nvme), "{plan:?}");
    assert!(plan.remarks.iter().any(|remark| remark.to_string().contains("overlaps RAM")));
}

#[test]
fn ports_of_anothers_function_are_refused() {
    let mut fake = machine();
    if let Some(bytes) = fake.space.0.get_mut(&Bdf::new(0, 5, 0)) {
        bytes[0x10..0x14].copy_from_slice(&0xffe1_u32.to_le_bytes());
    }
    let text = |devices: &str| {
        format!(
            "[[guest]]\nname=\"a\"\ncpus=[0]\nmemory=\"64M\"\nkernel=\"k\"\nio_ports=[\"0xffe8\"]\n\
             devices=[{devices}]\n"
        )
    };
    let plan = fake.plan(&text(""));
    let said = plan.refusals.iter().map(ToString::to_string).next().unwrap_or_default();
    assert!(
        said.contains("line 6: guest a: the ports 0xffe8 to 0xffe8 are BAR 0 of 00:05.0"),
        "{said}"
    );
    assert!(fake.plan(&text("\"00:05.0\"")).refusals.is_empty());
}

#[test]
fn an_interrupt_of_the_isa_bus_on_anothers_line_is_refused() {
    let mut fake = machine();
    fake.moved = Some((4, 20));
    let text = "[[guest]]\nname=\"a\"\ncpus=[0]\nmemory=\"64M\"\nkernel=\"k\"\ndevices=[\"00:04.0\"]\n\
                intx=[\"00:04.0=20\"]\n";
    fake.says(
        text,
        &["nexit.toml, line 7: guest a: intx names line 20, to which this machine's firmware has moved \
           interrupt 4 of the ISA bus, which is that of the hypervisor's console: the two cannot be told \
           apart; give one of the devices up"],
    );
    fake.moved = None;
    fake.says(text, &[]);
}

//! Tables that a firmware could have written, and tables that none should have.

use super::*;
use nexit_cases::Case;
use proptest::prelude::*;

/// A table with these structures, its length and checksum right.
pub(crate) fn table(flags: u8, structures: &[Vec<u8>]) -> Vec<u8> {
    let mut table = vec![0; HEADER];
    table[..4].copy_from_slice(b"DMAR");
    table[36] = 47;
    table[37] = flags;
    table.extend(structures.concat());
    seal(table)
}

fn seal(mut table: Vec<u8>) -> Vec<u8> {
    let length = table.len() as u32;
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[9] = 0;
    table[9] = table.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    table
}

pub(crate) fn scope(kind: u8, enumeration: u8, bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
    let mut bytes = vec![kind, 6 + 2 * path.len() as u8, 0, 0, enumeration, bus];
    bytes.extend(path.iter().flat_map(|(device, function)| [*device, *function]));
    bytes
}

pub(crate) fn drhd(include_all: bool, segment: u16, base: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
    let scopes = scopes.concat();
    let mut bytes = vec![0, 0, 16 + scopes.len() as u8, 0, u8::from(include_all), 0];
    bytes.extend(segment.to_le_bytes());
    bytes.extend(base.to_le_bytes());
    bytes.extend(scopes);
    bytes
}

fn rmrr(segment: u8, base: u64, last: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
    let scopes = scopes.concat();
    let mut bytes = vec![1, 0, 24 + scopes.len() as u8, 0, 0, 0, segment, 0];
    bytes.extend(base.to_le_bytes());
    bytes.extend(last.to_le_bytes());
    bytes.extend(scopes);
    bytes
}

fn atsr() -> Vec<u8> {
    vec![2, 0, 8, 0, 1, 0, 0, 0]
}

/// The bridge 00:1c.0 leads to buses 1 to 3, 01:00.0 to buses 2 and 3.
fn bridges(bridge: Bdf) -> Option<RangeInclusive<u8>> {
    match (bridge.bus(), bridge.device()) {
        (0, 0x1c) => Some(1..=3),
        (1, 0) => Some(2..=3),
        _ => None,
    }
}

fn bdf(text: &str) -> Bdf {
    text.parse().unwrap()
}

/// A client machine: graphics, all others, an RMRR for USB.
fn client() -> Vec<u8> {
    table(
        1,
        &[
            drhd(false, 0, 0xfed9_0000, &[scope(1, 0, 0, &[(2, 0)])]),
            drhd(false, 0, 0xfed9_2000, &[scope(2, 0, 0, &[(0x1c, 0), (0, 0)])]),
            drhd(
                true,
                0,
                0xfed9_1000,
                &[scope(3, 2, 0xf0, &[(0x1f, 0)]), scope(4, 0, 0, &[(0x1f, 0)])],
            ),
            drhd(true, 1, 0xfed9_3000, &[]),
            atsr(),
            rmrr(0, 0x7d00_0000, 0x7d0f_ffff, &[scope(1, 0, 0, &[(0x14, 0)])]),
        ],
    )
}

#[test]
fn each_function_has_its_unit() {
    let bytes = client();
    let dmar = Dmar::parse(&bytes).unwrap();
    let unit =
        |text| dmar.drhd_for(bdf(text), &bridges).map(|drhd| drhd.registers.as_u64()).unwrap();
    assert!(dmar.interrupt_remapping());
    assert_eq!(dmar.units().count(), 4);
    assert_eq!(unit("00:02.0"), 0xfed9_0000);
    assert_eq!(unit("00:02.1"), 0xfed9_1000);
    assert_eq!(unit("00:1c.0"), 0xfed9_1000);
    assert_eq!(unit("01:00.0"), 0xfed9_2000, "the bridge itself");
    assert_eq!(unit("03:05.2"), 0xfed9_2000, "behind the bridge");
    assert_eq!(unit("04:00.0"), 0xfed9_1000);
}

#[test]
fn io_apics_and_reserved_regions_are_found() {
    let bytes = client();
    let dmar = Dmar::parse(&bytes).unwrap();
    assert_eq!(dmar.ioapic_requester(2, &bridges), Some(bdf("f0:1f.0")));
    assert_eq!(dmar.ioapic_requester(0, &bridges), None, "that is the HPET's number");
    let usb = dmar.rmrr_for(bdf("00:14.0"), &bridges);
    assert_eq!(usb, Some(HpaRange { start: Hpa::new(0x7d00_0000), length: 0x10_0000 }));
    assert_eq!(dmar.rmrr_for(bdf("00:1f.2"), &bridges), None);
}

/// Two sockets, whose segments have the same bus numbers.
#[test]
fn units_scopes_and_reserved_regions_are_of_their_segment_only() {
    let nic = || scope(1, 0, 0x41, &[(0, 0)]);
    let bridge = || scope(2, 0, 0, &[(0x1c, 0)]);
    let units = [
        drhd(false, 0, 0x1000, &[nic()]),
        drhd(true, 0, 0x2000, &[]),
        drhd(false, 1, 0x3000, &[bridge(), scope(3, 9, 0xf0, &[(0x1f, 0)])]),
        drhd(true, 1, 0x4000, &[]),
        rmrr(1, 0x7d00_0000, 0x7d0f_ffff, &[nic(), bridge()]),
    ];
    let bytes = table(1, &units);
    let dmar = Dmar::parse(&bytes).unwrap();
    let unit = |text| dmar.drhd_for(bdf(text), &bridges).map(|drhd| drhd.registers.as_u64());
    assert_eq!((unit("41:00.0"), unit("0001:41:00.0")), (Some(0x1000), Some(0x4000)));
    assert_eq!((unit("03:05.2"), unit("0001:03:05.2")), (Some(0x2000), Some(0x3000)));
    assert_eq!(unit("0002:41:00.0"), None);
    assert_eq!(dmar.ioapic_requester(9, &bridges), Some(bdf("0001:f0:1f.0")));
    for named in ["41:00.0", "03:05.2"] {
        assert_eq!(dmar.rmrr_for(bdf(named), &bridges), None);
        assert!(dmar.rmrr_for(bdf(named).in_segment(1), &bridges).is_some());
    }
}

#[test]
fn without_a_unit_for_all_others_some_have_none() {
    let bytes = table(0, &[drhd(false, 0, 0x1000, &[scope(1, 0, 0, &[(2, 0)])])]);
    let dmar = Dmar::parse(&bytes).unwrap();
    assert!(!dmar.interrupt_remapping());
    assert_eq!(dmar.drhd_for(bdf("00:03.0"), &bridges), None);
}

fn refusal(bytes: &[u8]) -> String {
    Dmar::parse(bytes).unwrap_err().to_string()
}

#[test]
fn lies_are_named() {
    let good = client();
    assert!(refusal(&good[..good.len() - 1]).contains("bytes where"));
    assert!(refusal(&[]).contains("it has 0 bytes where 48 are needed"));
    let mut wrong = good.clone();
    wrong[60] ^= 1;
    assert!(refusal(&wrong).contains("checksum"));
    let mut wrong = good.clone();
    wrong[0] = b'd';
    assert!(refusal(&wrong).contains("signature"));
    assert!(refusal(&table(1, &[atsr()])).contains("names no remapping unit"));
    let beyond = table(1, &[vec![0, 0, 200, 0, 1, 0, 0, 0]]);
    assert!(refusal(&beyond).contains("the structure at offset 48 claims 200 bytes"));
    let short = table(1, &[vec![0, 0, 8, 0, 1, 0, 0, 0]]);
    assert!(refusal(&short).contains("offset 48 has a device scope"));
    for scope in [vec![1, 0, 0, 0, 0, 0], vec![1, 9, 0, 0, 0, 0, 1, 1], vec![1, 7, 0, 0, 0, 0, 1]] {
        assert!(refusal(&table(1, &[drhd(true, 0, 0x1000, &[scope])])).contains("device scope"));
    }
    for base in [0, 0x1010] {
        let said = refusal(&table(1, &[drhd(true, 0, base, &[])]));
        assert!(said.contains(&format!("registers are at {base:#x}")), "{said}");
    }
}

/// A case's table.
fn case(name: &str) -> Vec<u8> {
    Case::named(&format!("{name}.dmar")).table("DMAR")
}

#[test]
fn what_is_whole_is_used_where_no_unit_can_hide_in_the_rest() {
    for name in ["scope-without-path", "tail-zeroes", "odd-last-structure"] {
        let bytes = case(name);
        let dmar = Dmar::parse(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((dmar.units().count(), dmar.left_out()), (1, 1), "{name}");
        assert!(dmar.drhd_for(bdf("00:1f.0"), &bridges).is_some(), "{name}");
        assert_eq!(dmar.rmrr_for(bdf("00:00.0"), &bridges), None, "a scope without path is nobody");
    }
    let unit = drhd(true, 0, 0x1000, &[]);
    let garbage = table(1, &[unit.clone(), vec![0, 0, 0, 0, 1, 0, 0, 0]]);
    assert!(refusal(&garbage).contains("the structure at offset 64 claims 0 bytes"));
    let cut_off = table(1, &[unit.clone(), vec![0, 0, 16, 0, 1, 0, 0, 0]]);
    assert!(refusal(&cut_off).contains("the structure at offset 64 claims 16 bytes"));
    let reserved =
        rmrr(0, 0x1000, 0x1fff, &[scope(1, 0, 0, &[(5, 0)]), vec![1, 99, 0, 0, 0, 0, 6, 0]]);
    let bytes = table(1, &[unit, reserved]);
    let dmar = Dmar::parse(&bytes).unwrap();
    assert_eq!(dmar.left_out(), 1);
    assert!(dmar.rmrr_for(bdf("00:05.0"), &bridges).is_some());
}

#[test]
fn a_table_of_a_machine_whose_vt_d_is_off_is_refused() {
    for name in ["vtd-off-leftover", "zero-unit"] {
        assert!(refusal(&case(name)).contains("whose registers are at 0x0"), "{name}");
    }
    assert!(refusal(&case("badsum")).contains("checksum"));
}

#[test]
fn tables_of_real_shapes_are_read() {
    let bytes = case("eighteen-units");
    let dmar = Dmar::parse(&bytes).unwrap();
    assert_eq!((dmar.units().count(), dmar.left_out()), (18, 0));
    let unit = dmar.drhd_for(bdf("00:1f.0"), &bridges).unwrap();
    assert_eq!(unit.registers, Hpa::new(0xd13f_c000));
    assert_eq!(dmar.ioapic_requester(8, &bridges), Some(bdf("00:1e.7")));

    let bytes = case("high-unit");
    let unit = Dmar::parse(&bytes).unwrap().drhd_for(bdf("00:02.0"), &bridges).unwrap();
    assert_eq!(unit.registers, Hpa::new(0x20f_ffff_c000));

    let bytes = case("include-all-first");
    let dmar = Dmar::parse(&bytes).unwrap();
    let at = |function| dmar.drhd_for(bdf(function), &bridges).unwrap().registers.as_u64();
    assert_eq!((at("00:02.0"), at("00:14.0")), (0xfed9_0000, 0xfed9_1000));

    let bytes = case("andd-sidp-satc");
    let dmar = Dmar::parse(&bytes).unwrap();
    let at = |function| dmar.drhd_for(bdf(function), &bridges).unwrap().registers.as_u64();
    assert_eq!((at("00:02.0"), at("00:15.0")), (0xfed9_0000, 0xfed9_1000));
    assert_eq!(dmar.left_out(), 0);
    let reserved = dmar.rmrr_for(bdf("00:14.0"), &bridges).unwrap();
    assert_eq!(reserved, HpaRange { start: Hpa::new(0x3e2e_0000), length: 0x2_0000 });
    assert_eq!(dmar.rmrr_for(bdf("00:15.0"), &bridges), None);
    assert_eq!(dmar.ioapic_requester(8, &bridges), Some(bdf("f0:1f.0")));

    let bytes = case("x2apic-optout");
    let dmar = Dmar::parse(&bytes).unwrap();
    assert!(dmar.interrupt_remapping() && dmar.x2apic_opt_out());
    let bytes = client();
    assert!(!Dmar::parse(&bytes).unwrap().x2apic_opt_out());
}

#[test]
fn one_io_apic_that_is_left_in_both_tables_is_the_same() {
    let bytes = case("ioapic-id-mismatch");
    let dmar = Dmar::parse(&bytes).unwrap();
    assert_eq!(dmar.ioapic_names(&[2]), [Some(0)]);
    assert_eq!(dmar.ioapic_names(&[0]), [Some(0)]);
    assert_eq!(dmar.ioapic_names(&[2, 3]), [None, None], "which of them is it?");
    let bytes = case("rmrr-names-everything");
    let dmar = Dmar::parse(&bytes).unwrap();
    assert_eq!(dmar.ioapic_names(&[8, 9]), [Some(8), Some(9)]);
    assert_eq!(dmar.ioapic_names(&[8, 10]), [Some(8), Some(9)]);
    assert_eq!(dmar.ioapic_names(&[10, 11]), [None, None]);
    assert_eq!(dmar.ioapic_names(&[8, 9, 10]), [Some(8), Some(9), None]);
}

#[test]
fn a_server_whose_reserved_regions_name_nearly_everything() {
    let server = Case::named("rmrr-names-everything.dmar");
    let bytes = server.table("DMAR");
    let dmar = Dmar::parse(&bytes).unwrap();
    let behind = |at: Bdf| {
        let is =
            |bridge: &&nexit_cases::Bridge| Bdf::new(bridge.at.0, bridge.at.1, bridge.at.2) == at;
        server.bridges.iter().find(is).map(|bridge| bridge.buses.0..=bridge.buses.1)
    };
    let reserved =
        |function| dmar.rmrr_for(bdf(function), &behind).map(|range| range.start.as_u64());
    assert_eq!(reserved("01:00.0"), Some(0x791f_4000));
    assert_eq!(reserved("02:00.0"), Some(0x791f_4000));
    assert_eq!(reserved("81:00.0"), Some(0x791f_4000));
    assert_eq!(reserved("00:1a.0"), Some(0x7917_0000));
    assert_eq!(reserved("00:1f.2"), None);
}

/// Reads everything that can be read.
fn exercise(bytes: &[u8], function: Bdf) {
    if let Ok(dmar) = Dmar::parse(bytes) {
        assert!(dmar.units().count() > 0);
        let _ = dmar.drhd_for(function, &bridges);
        let _ = dmar.rmrr_for(function, &bridges);
        let _ = dmar.ioapic_requester(function.bus(), &bridges);
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_parsed_or_refused(
        body in proptest::collection::vec(any::<u8>(), 0..200), id: u16,
    ) {
        exercise(&body, Bdf::from_requester_id(id));
        let mut whole = table(1, &[]);
        whole.extend(body);
        exercise(&seal(whole), Bdf::from_requester_id(id));
    }

    #[test]
    fn a_table_with_changed_bytes_is_parsed_or_refused(
        changes in proptest::collection::vec((48..400usize, any::<u8>()), 0..6), id: u16,
    ) {
        let mut bytes = client();
        for (at, value) in changes {
            let at = 48 + at % (bytes.len() - 48);
            bytes[at] = value;
        }
        exercise(&seal(bytes), Bdf::from_requester_id(id));
    }

    #[test]
    fn a_table_cut_short_is_refused(length in 0..200usize) {
        let bytes = client();
        let length = length % bytes.len();
        prop_assert!(Dmar::parse(&bytes[..length]).is_err());
    }
}

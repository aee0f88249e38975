//! Tables that a firmware could have written, and tables that none should have.

use super::*;
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

fn rmrr(base: u64, last: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
    let scopes = scopes.concat();
    let mut bytes = vec![1, 0, 24 + scopes.len() as u8, 0, 0, 0, 0, 0];
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
            rmrr(0x7d00_0000, 0x7d0f_ffff, &[scope(1, 0, 0, &[(0x14, 0)])]),
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
    let zero = table(1, &[drhd(true, 0, 0x1000, &[]), vec![0, 0, 0, 0]]);
    assert!(refusal(&zero).contains("the structure at offset 64 claims 0 bytes"));
    let beyond = table(1, &[vec![0, 0, 200, 0, 1, 0, 0, 0]]);
    assert!(refusal(&beyond).contains("the structure at offset 48 claims 200 bytes"));
    let short = table(1, &[vec![0, 0, 8, 0, 1, 0, 0, 0]]);
    assert!(refusal(&short).contains("offset 48 has a device scope"));
    for scope in [vec![1, 0, 0, 0, 0, 0], vec![1, 6, 0, 0, 0, 0], vec![1, 9, 0, 0, 0, 0, 1, 1]] {
        assert!(refusal(&table(1, &[drhd(true, 0, 0x1000, &[scope])])).contains("device scope"));
    }
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

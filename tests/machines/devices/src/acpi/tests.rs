use super::*;
use crate::workbench::Workbench;

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut table = vec![0; HEADER_SIZE];
    table[..4].copy_from_slice(signature);
    table.extend(body);
    finish(&mut table);
    table
}

/// A firmware with an RSDT at 0x8000 and a MADT at 0x9000, which has the I/O APIC 5 behind a CPU.
fn firmware() -> (Workbench, [u8; RSDP_SIZE]) {
    let mut host = Workbench::default();
    let madt = [
        0, 0, 0xe0, 0xfe, 1, 0, 0, 0, 0, 8, 0, 0, 1, 0, 0, 0, 1, 12, 5, 0, 0, 0, 0xc0, 0xfe, 0, 0,
        0, 0,
    ];
    host.write(0x9000, &table(b"APIC", &madt));
    host.write(0x8000, &table(b"RSDT", &0x9000_u32.to_le_bytes()));
    let mut rsdp = *b"RSD PTR ________\0\x80\0\0";
    rsdp[8] = 0;
    rsdp[8] = 0u8.wrapping_sub(sum(&rsdp));
    (host, rsdp)
}

#[test]
fn the_firmwares_tables_get_one_more() {
    let (mut host, mut rsdp) = firmware();
    let window = add_dmar(&mut host, &mut rsdp, &UnitOptions::default()).unwrap();
    assert_eq!((sum(&rsdp), word(&rsdp, 16)), (0, Some(WINDOW as u32)));
    let rsdt = &window[..44];
    assert_eq!((sum(rsdt), word(rsdt, 4)), (0, Some(44)));
    assert_eq!([36, 40].map(|at| word(rsdt, at)), [Some(0x9000), Some(0xfed8_0800)]);
    let dmar = &window[0x800..0x800 + 72];
    assert!(dmar.starts_with(b"DMAR") && sum(dmar) == 0 && word(dmar, 4) == Some(72));
    assert_eq!((dmar[36], dmar[37]), (47, 1));
    assert_eq!(dmar[48..56], [0, 0, 24, 0, 1, 0, 0, 0]);
    assert_eq!(dmar[56..64], 0xfed9_0000_u64.to_le_bytes());
    assert_eq!(dmar[64..], [3, 8, 0, 0, 5, 0xf0, 0x1f, 0]);
}

#[test]
fn nothing_happens_before_the_firmware_is_done() {
    let (mut host, rsdp) = firmware();
    let unit = UnitOptions::default();
    for spoilt in [0, 8, 16] {
        let mut rsdp = rsdp;
        rsdp[spoilt] ^= 1;
        let before = rsdp;
        assert_eq!(add_dmar(&mut host, &mut rsdp, &unit), None);
        assert_eq!(rsdp, before);
    }
    let mut rsdp = rsdp;
    host.write(0x8024, &[1]);
    assert_eq!(add_dmar(&mut host, &mut rsdp, &unit), None, "the RSDT's checksum");
}

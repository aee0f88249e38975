//! Trees of bridges and devices as machines have them, and trees that lie.

use super::*;
use crate::fake::FakeSpace;
use crate::header::scan;
use proptest::prelude::*;
use std::string::ToString;
use std::vec;

const fn at(bus: u8, device: u8, function: u8) -> Bdf {
    Bdf::new(bus, device, function)
}

/// Device/Port Types.
const ENDPOINT: u8 = 0;
const ROOT_PORT: u8 = 4;
const UPSTREAM: u8 = 5;
const DOWNSTREAM: u8 = 6;
const TO_CONVENTIONAL: u8 = 7;

/// A machine under construction.
#[derive(Default)]
struct Tree(FakeSpace);

impl Tree {
    fn device(mut self, bdf: Bdf, class: u32) -> Self {
        self.0.device(bdf, class).bytes[0x0e] |= 0x80;
        self
    }

    fn bridge(mut self, bdf: Bdf, secondary: u8, subordinate: u8) -> Self {
        self.0.bridge(bdf, secondary);
        let bridge = self.0.functions.get_mut(&bdf).unwrap();
        bridge.bytes[0x1a] = subordinate;
        bridge.bytes[0x0e] |= 0x80;
        self
    }

    /// Makes the function a PCI Express one.
    fn express(mut self, bdf: Bdf, port: u8) -> Self {
        let function = self.0.functions.get_mut(&bdf).unwrap();
        function.capability(0x40, PCI_EXPRESS, &[port << 4 | 2, 0]);
        self
    }

    /// Gives it Access Control Services that are on.
    fn isolating(mut self, bdf: Bdf) -> Self {
        let function = self.0.functions.get_mut(&bdf).unwrap();
        function.set(0x100, 0x0001_000d);
        function.set(0x104, 0x001f_001f);
        self
    }

    fn port(self, bdf: Bdf, kind: u8, secondary: u8, subordinate: u8) -> Self {
        self.bridge(bdf, secondary, subordinate).express(bdf, kind)
    }

    fn groups(&self) -> Groups {
        let functions: Vec<Function> = scan(&self.0, 0, [0]).collect();
        Groups::new(&self.0, &functions)
    }

    /// All groups of more than one function.
    fn joined(&self) -> Vec<Vec<Bdf>> {
        let groups = self.groups();
        let of = |member: &Member| groups.group(member.function.bdf).map(|f| f.bdf).collect();
        let mut all: Vec<Vec<Bdf>> = groups.members.iter().map(of).collect();
        all.retain(|group| group.len() > 1);
        all.sort();
        all.dedup();
        all
    }
}

/// The chipset of a q35, and two devices on its root bus.
fn q35() -> Tree {
    Tree::default()
        .device(at(0, 0, 0), 0x060000)
        .device(at(0, 4, 0), 0x010802)
        .device(at(0, 5, 0), 0x020000)
        .device(at(0, 31, 0), 0x060100)
        .device(at(0, 31, 2), 0x010601)
        .device(at(0, 31, 3), 0x040300)
        .device(at(0, 31, 4), 0x0c0500)
        .device(at(0, 31, 5), 0x0c8000)
}

#[test]
fn the_chipsets_functions_are_one_group_and_devices_of_the_root_bus_are_their_own() {
    assert_eq!(q35().joined(), [[0, 2, 3, 4, 5].map(|function| at(0, 31, function))]);
}

#[test]
fn a_divided_group_is_refused_with_the_functions_that_must_go_together() {
    let groups = q35().groups();
    let error = groups.check(&[vec![at(0, 4, 0)], vec![at(0, 31, 2)]]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "00:1f.2 cannot be assigned without 00:1f.3, as nothing keeps the two from reaching each \
         other (no Access Control Services): give 00:1f.2, 00:1f.3 to one guest, or none of them \
         to any"
    );
    assert!(groups.check(&[[at(0, 31, 2)], [at(0, 31, 3)]]).is_err(), "nor between two guests");
    assert_eq!(groups.check(&[[at(0, 31, 2), at(0, 31, 3)]]), Ok(()), "the ISA bridge may stay");
    let error = groups.check(&[vec![at(0, 31, 2), at(0, 31, 3)], vec![at(0, 31, 0)]]).unwrap_err();
    assert_eq!((error.other, error.together.len()), (at(0, 31, 0), 3), "but be no one else's");
}

#[test]
fn smbus_and_spi_flash_stay_behind_or_go_along_but_to_nobody_else() {
    let groups = q35().groups();
    let pair = vec![at(0, 31, 2), at(0, 31, 3)];
    assert_eq!(groups.check(std::slice::from_ref(&pair)), Ok(()));
    for quiet in [at(0, 31, 4), at(0, 31, 5)] {
        assert_eq!(groups.check(&[[&pair[..], &[quiet]].concat()]), Ok(()), "by name");
        let error = groups.check(&[pair.clone(), vec![quiet]]).unwrap_err();
        assert_eq!(error.other, quiet);
    }
    // What is no platform's serial bus goes along as everything does.
    let mut other = q35();
    other.0.functions.get_mut(&at(0, 31, 5)).unwrap().set(0, 0x1234_1022);
    assert!(other.groups().check(&[pair]).is_err());
}

#[test]
fn a_function_that_is_not_there_is_not_this_checks_matter() {
    assert_eq!(q35().groups().check(&[[at(0, 9, 0)]]), Ok(()));
}

#[test]
fn a_port_that_isolates_keeps_what_is_behind_it_apart() {
    let (one, two) = (at(0, 3, 0), at(0, 3, 1));
    let tree = || {
        Tree::default()
            .port(one, ROOT_PORT, 1, 1)
            .port(two, ROOT_PORT, 2, 2)
            .device(at(1, 0, 0), 0x010802)
            .device(at(2, 0, 0), 0x020000)
    };
    assert_eq!(tree().isolating(one).isolating(two).joined().len(), 0);
    assert_eq!(tree().isolating(one).joined(), [[two, at(2, 0, 0)]]);
    assert_eq!(tree().joined(), [[one, two, at(1, 0, 0), at(2, 0, 0)]], "one device, two ports");
}

#[test]
fn functions_behind_an_isolating_port_are_apart_only_where_they_isolate_themselves() {
    let port = at(0, 3, 0);
    let tree = || {
        Tree::default()
            .port(port, ROOT_PORT, 1, 1)
            .isolating(port)
            .device(at(1, 0, 0), 0x020000)
            .express(at(1, 0, 0), ENDPOINT)
            .device(at(1, 0, 1), 0x020000)
            .device(at(1, 1, 0), 0x020000)
    };
    let all = [at(1, 0, 0), at(1, 0, 1), at(1, 1, 0)];
    assert_eq!(tree().joined(), [all], "behind a link, device number 1 is function 8 of the same");
    assert_eq!(tree().isolating(all[0]).joined(), [[all[1], all[2]]]);
}

#[test]
fn a_switch_is_as_good_as_its_downstream_ports() {
    let (root, up) = (at(0, 3, 0), at(1, 0, 0));
    let (one, two) = (at(2, 0, 0), at(2, 1, 0));
    let tree = || {
        Tree::default()
            .port(root, ROOT_PORT, 1, 4)
            .isolating(root)
            .port(up, UPSTREAM, 2, 4)
            .port(one, DOWNSTREAM, 3, 3)
            .port(two, DOWNSTREAM, 4, 4)
            .device(at(3, 0, 0), 0x010802)
            .device(at(4, 0, 0), 0x020000)
    };
    assert_eq!(tree().joined(), [[one, at(3, 0, 0)], [two, at(4, 0, 0)]]);
    assert_eq!(tree().isolating(one).isolating(two).joined().len(), 0);
    let with_sibling = tree().device(at(1, 0, 1), 0x088000);
    let all = [root, up, at(1, 0, 1), one, two, at(3, 0, 0), at(4, 0, 0)];
    assert_eq!(
        with_sibling.joined(),
        [&all[1..]],
        "a device in the switch can reach all behind it"
    );
}

#[test]
fn behind_a_bridge_to_conventional_pci_all_is_one_group_with_the_bridges_requester_id() {
    let (port, to_pci, inner) = (at(0, 3, 0), at(1, 0, 0), at(2, 5, 0));
    let tree = Tree::default()
        .port(port, ROOT_PORT, 1, 3)
        .isolating(port)
        .port(to_pci, TO_CONVENTIONAL, 2, 3)
        .device(at(2, 4, 0), 0x020000)
        .bridge(inner, 3, 3)
        .device(at(3, 1, 0), 0x020000);
    assert_eq!(tree.joined(), [[to_pci, at(2, 4, 0), inner, at(3, 1, 0)]]);
    let groups = tree.groups();
    let requesters = |function| groups.requesters(function).collect::<Vec<_>>();
    assert_eq!(requesters(at(2, 4, 0)), [at(2, 4, 0), at(2, 0, 0)]);
    assert_eq!(requesters(at(3, 1, 0)), [at(3, 1, 0), at(2, 0, 0), inner]);
    assert_eq!(requesters(port), [port]);
    let message = |function| groups.interrupt_requester(function);
    assert_eq!([at(2, 4, 0), at(3, 1, 0)].map(message), [at(2, 0, 0); 2], "of the upper bridge");
    assert_eq!([port, to_pci].map(message), [port, to_pci]);
    let error = groups.check(&[[at(2, 4, 0)]]).unwrap_err();
    assert_eq!(error.together, [at(2, 4, 0), at(3, 1, 0)]);
    assert_eq!(groups.check(&[error.together]), Ok(()));
}

#[test]
fn behind_a_conventional_bridge_of_the_root_bus_messages_carry_the_bridges_own_id() {
    let (bridge, inner) = (at(0, 30, 0), at(1, 2, 0));
    let groups = Tree::default()
        .bridge(bridge, 1, 2)
        .device(at(1, 1, 0), 0x020000)
        .bridge(inner, 2, 2)
        .device(at(2, 1, 0), 0x020000)
        .device(at(0, 4, 0), 0x010802)
        .groups();
    let message = |function| groups.interrupt_requester(function);
    assert_eq!([at(1, 1, 0), at(2, 1, 0)].map(message), [bridge; 2]);
    assert_eq!([bridge, at(0, 4, 0)].map(message), [bridge, at(0, 4, 0)]);
}

/// Root ports 00:1c.0 and 00:1c.2 of a chipset with wide registers, a network card behind each.
#[test]
fn behind_sunrise_points_root_ports_each_card_is_a_group_of_its_own() {
    let ports = [at(0, 28, 0), at(0, 28, 2)];
    let mut tree = Tree::default()
        .port(ports[0], ROOT_PORT, 2, 2)
        .port(ports[1], ROOT_PORT, 4, 4)
        .device(at(2, 0, 0), 0x020000)
        .device(at(4, 0, 0), 0x020000);
    for port in ports {
        let port = tree.0.functions.get_mut(&port).unwrap();
        port.set(0, 0x9d10_8086);
        for (offset, value) in [(0x100, 0x1401_0001), (0x140, 0x0001_000d), (0x144, 0x0f)] {
            port.set(offset, value);
        }
        port.set_writable(0x148, 0x0f);
    }
    let all = [ports[0], ports[1], at(2, 0, 0), at(4, 0, 0)];
    assert_eq!(tree.joined(), [all], "before it is switched on");
    let functions: Vec<Function> = scan(&tree.0, 0, [0]).collect();
    acs::enable(&mut tree.0, &functions);
    assert_eq!(tree.joined().len(), 0);
    assert_eq!(tree.groups().check(&[[at(2, 0, 0)], [at(4, 0, 0)]]), Ok(()));
}

/// As the ASM1083: behind a root port, and without a PCI Express capability.
#[test]
fn a_bridge_behind_a_link_is_one_to_conventional_pci_whether_it_says_so_or_not() {
    let (port, bridge, card) = (at(0, 3, 0), at(1, 0, 0), at(2, 4, 0));
    let groups = Tree::default()
        .port(port, ROOT_PORT, 1, 2)
        .isolating(port)
        .bridge(bridge, 2, 2)
        .device(card, 0x020000)
        .groups();
    assert_eq!(groups.interrupt_requester(card), at(2, 0, 0));
    assert_eq!(groups.requesters(card).collect::<Vec<_>>(), [card, at(2, 0, 0), bridge]);
}

#[test]
fn behind_ports_of_a_switch_messages_carry_the_functions_own_id() {
    let groups = Tree::default()
        .port(at(0, 3, 0), ROOT_PORT, 1, 3)
        .port(at(1, 0, 0), UPSTREAM, 2, 3)
        .port(at(2, 0, 0), DOWNSTREAM, 3, 3)
        .device(at(3, 0, 0), 0x010802)
        .groups();
    assert_eq!(groups.interrupt_requester(at(3, 0, 0)), at(3, 0, 0));
}

#[test]
fn a_namesake_in_another_segment_is_nobodys_neighbour() {
    let (near, far) = (at(1, 0, 0), at(1, 0, 1).in_segment(1));
    let tree = Tree::default().port(at(0, 3, 0), ROOT_PORT, 1, 1).device(near, 0x010802);
    let Tree(mut space) = tree;
    space.device(far, 0x020000);
    let functions = scan(&space, 0, [0]).chain(scan(&space, 1, [1]));
    let functions: Vec<Function> = functions.collect();
    // Function 1 is found behind a function 0 only.
    assert_eq!(functions.len(), 2);
    let functions = [functions, vec![Function::read(&space, far).unwrap()]].concat();
    let groups = Groups::new(&space, &functions);
    assert_eq!(groups.group(near).map(|f| f.bdf).collect::<Vec<_>>(), [at(0, 3, 0), near]);
    assert_eq!(groups.group(far).map(|f| f.bdf).collect::<Vec<_>>(), [far]);
}

#[test]
fn a_bridge_without_buses_has_nothing_behind_it() {
    let tree = Tree::default().bridge(at(0, 3, 0), 0, 0).device(at(0, 4, 0), 0x020000);
    assert_eq!(tree.joined().len(), 0);
}

/// A function somewhere on four buses: a device, or a bridge that may lie.
type Piece = (u16, Option<(u8, u8)>, Option<u8>, bool);

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let bridge = proptest::option::of((0u8..4, 0u8..5));
    let piece = (0u16..0x400, bridge, proptest::option::of(0u8..10), any::<bool>());
    proptest::collection::vec(piece, 1..16).prop_map(|mut pieces| {
        pieces.iter_mut().for_each(|piece| piece.0 &= 0x319);
        pieces.sort_by_key(|piece| piece.0);
        pieces.dedup_by_key(|piece| piece.0);
        pieces
    })
}

fn built(pieces: &[Piece], isolation: bool) -> Groups {
    let mut tree = Tree::default();
    for &(id, bridge, port, isolates) in pieces {
        let bdf = Bdf::from_requester_id(id);
        tree = match bridge {
            Some((secondary, subordinate)) => tree.bridge(bdf, secondary, subordinate),
            None => tree.device(bdf, 0x020000),
        };
        if let Some(port) = port {
            tree = tree.express(bdf, port);
        }
        if isolates && isolation {
            tree = tree.isolating(bdf);
        }
    }
    let functions = tree.0.functions.keys();
    let functions: Vec<_> = functions.map(|bdf| Function::read(&tree.0, *bdf).unwrap()).collect();
    Groups::new(&tree.0, &functions)
}

proptest! {
    #[test]
    fn each_function_is_in_exactly_one_group(pieces in pieces()) {
        let groups = built(&pieces, true);
        for &(id, ..) in &pieces {
            let members: Vec<Bdf> = groups.group(Bdf::from_requester_id(id)).map(|f| f.bdf).collect();
            prop_assert!(members.contains(&Bdf::from_requester_id(id)));
            for member in &members {
                prop_assert!(groups.group(*member).map(|f| f.bdf).eq(members.iter().copied()));
            }
        }
    }

    #[test]
    fn isolation_never_joins(pieces in pieces()) {
        let (with, without) = (built(&pieces, true), built(&pieces, false));
        for &(id, ..) in &pieces {
            let function = Bdf::from_requester_id(id);
            let all: Vec<Bdf> = without.group(function).map(|f| f.bdf).collect();
            prop_assert!(with.group(function).all(|member| all.contains(&member.bdf)));
        }
    }

    #[test]
    fn functions_that_share_a_requester_id_share_a_group(pieces in pieces()) {
        let groups = built(&pieces, true);
        let functions: Vec<_> = pieces.iter().map(|p| Bdf::from_requester_id(p.0)).collect();
        for &one in &functions {
            for &other in &functions {
                let shared = groups.requesters(one).any(|id| groups.requesters(other).any(|o| o == id));
                prop_assert!(!shared || groups.group(one).any(|member| member.bdf == other));
                let message = groups.interrupt_requester(one);
                prop_assert!(groups.requesters(one).any(|id| id == message));
            }
        }
    }

    #[test]
    fn an_assignment_passes_only_if_no_group_is_divided(
        pieces in pieces(),
        owners in proptest::collection::vec(0usize..3, 16),
    ) {
        let groups = built(&pieces, true);
        let owner = |bdf: Bdf| {
            owners[pieces.iter().position(|piece| piece.0 == bdf.requester_id()).unwrap()]
        };
        // Owner 2 is nobody.
        let functions = pieces.iter().map(|piece| Bdf::from_requester_id(piece.0));
        let of = |guest| functions.clone().filter(|bdf| owner(*bdf) == guest).collect::<Vec<_>>();
        let undivided = functions.clone().all(|bdf| owner(bdf) == 2 || groups.group(bdf).all(|other| {
            let stays = other.may_stay_behind() && owner(other.bdf) == 2;
            owner(other.bdf) == owner(bdf) || stays
        }));
        let result = groups.check(&[of(0), of(1)]);
        prop_assert_eq!(result.is_ok(), undivided);
        if let Err(error) = result {
            prop_assert!(error.together.contains(&error.function));
            prop_assert!(error.together.contains(&error.other));
            prop_assert!(groups.check(&[error.together]).is_ok());
        }
    }
}

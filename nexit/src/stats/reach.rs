//! Which code a guest's exit can reach: the call graph of the linked image, from the loop that enters the guest.
//!
//! Edges are direct calls and jumps, and addresses of functions that code loads or that stand in data which
//! the code names (tables of virtual functions, of jumps). So it is what *may* be called: more than what
//! is. Calls through an object that was made elsewhere are not seen; [`THROUGH_OBJECTS`] names those.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};

use super::image::{Function, Image};

/// In the names of the functions of the loop that enters a guest and handles its exits.
pub(crate) const LOOP: &str = "kernel::run::Running<";
/// Functions that an exit reaches through an object that the boot made.
pub(crate) const THROUGH_OBJECTS: [&str; 2] = [
    // Routes and domains change while a guest programs its devices.
    " as arch::iommu::Iommu>::",
    // Through the IDT: an NMI ends a guest's run, and the host takes it then.
    "cpu::exceptions::handle",
];

/// The vendor of the virtualization.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Vendor {
    /// Intel.
    VtX,
    AmdV,
}

impl Vendor {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::VtX, Self::AmdV];

    /// For a reader.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::VtX => "VT-x",
            Self::AmdV => "AMD-V",
        }
    }

    const fn enters(self, code: Code) -> bool {
        match self {
            Self::VtX => matches!(code, Code::Vmlaunch | Code::Vmresume),
            Self::AmdV => matches!(code, Code::Vmrunw | Code::Vmrund | Code::Vmrunq),
        }
    }
}

/// A node: a function by its place in the image, or data by its address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Node {
    Function(usize),
    Data(u64),
}

/// The call graph.
#[derive(Debug)]
pub(crate) struct Graph<'a> {
    image: &'a Image,
    edges: BTreeMap<Node, BTreeSet<Node>>,
    /// Functions that hold an entry, by vendor.
    entries: [BTreeSet<usize>; 2],
    /// Functions whose address is in data, or is loaded by an instruction.
    taken: BTreeSet<usize>,
}

impl<'a> Graph<'a> {
    /// Of all code of the image.
    pub(crate) fn new(image: &'a Image) -> Self {
        let (edges, taken) = (BTreeMap::new(), BTreeSet::new());
        let mut graph = Self { image, edges, entries: Default::default(), taken };
        for (index, function) in image.functions.iter().enumerate() {
            let to = graph.named_by(index, function);
            graph.edges.insert(Node::Function(index), to);
        }
        graph.follow_data();
        graph
    }

    /// The targets that a function's instructions refer to.
    fn named_by(&mut self, index: usize, function: &Function) -> BTreeSet<Node> {
        let mut named = BTreeSet::new();
        let bytes =
            self.image.code.iter().find_map(|piece| piece.range(function.start, function.end));
        let bytes = bytes.unwrap_or_default();
        for instruction in &mut Decoder::with_ip(64, bytes, function.start, DecoderOptions::NONE) {
            for (entries, vendor) in self.entries.iter_mut().zip(Vendor::ALL) {
                if vendor.enters(instruction.code()) {
                    entries.insert(index);
                }
            }
            for address in addresses(&instruction) {
                let node = match address {
                    Named::Branch(at) => self.function_around(at).map(Node::Function),
                    Named::Value(at) => {
                        let node = self.node(at);
                        self.taken.extend(node.as_ref().and_then(self::function));
                        node
                    }
                };
                named.extend(node.filter(|node| *node != Node::Function(index)));
            }
        }
        named
    }

    /// The function that has the instruction at an address.
    fn function_around(&self, at: u64) -> Option<usize> {
        let functions = &self.image.functions;
        let before = functions.partition_point(|function| function.start <= at).checked_sub(1);
        before.filter(|index| functions.get(*index).is_some_and(|f| at < f.end))
    }

    /// The function or data at an address. A pointer to a function is the address of its first byte: an address within a
    /// function is only a number.
    fn node(&self, at: u64) -> Option<Node> {
        if let Some(index) = self.function_around(at) {
            let start = self.image.functions.get(index).map(|function| function.start);
            return (start == Some(at)).then_some(Node::Function(index));
        }
        let held = |at| self.image.data.iter().any(|piece| piece.holds(at));
        held(at).then_some(Node::Data(at))
    }

    /// Edges of data: a referenced address starts an object that ends at the next referenced address.
    fn follow_data(&mut self) {
        let mut starts: BTreeSet<u64> = self.edges.values().flatten().filter_map(data).collect();
        let mut words = BTreeMap::new();
        for piece in &self.image.data {
            for (bytes, at) in piece.bytes.chunks_exact(8).zip((piece.start..).step_by(8)) {
                let word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
                if let Some(node) = self.node(word) {
                    words.insert(at, node);
                    starts.extend(data(&node));
                    self.taken.extend(function(&node));
                }
            }
        }
        for (start, end) in starts.iter().zip(starts.iter().skip(1).chain([&u64::MAX])) {
            let to = words.range(start..end).map(|(_, node)| *node).collect();
            self.edges.insert(Node::Data(*start), to);
        }
    }

    /// The functions that a guest's exit can reach; none if the loop is not found.
    pub(crate) fn reach(&self, vendor: Vendor) -> Vec<&'a Function> {
        let [first, second] = &self.entries;
        let entries = if vendor == Vendor::VtX { first } else { second };
        let of_loop =
            |index: usize| self.image.functions.get(index).is_some_and(|f| f.name.contains(LOOP));
        // The functions of the loop that lead to an entry of this vendor, and the entries themselves.
        let mut roots: BTreeSet<usize> = entries.clone();
        loop {
            let before = roots.len();
            for index in (0..self.image.functions.len()).filter(|index| of_loop(*index)) {
                let to = self.edges.get(&Node::Function(index)).into_iter().flatten();
                if to.filter_map(function).any(|to| roots.contains(&to)) {
                    roots.insert(index);
                }
            }
            if roots.len() == before {
                break;
            }
        }
        if !roots.iter().any(|index| of_loop(*index)) {
            return Vec::new();
        }
        roots.extend(self.named(&THROUGH_OBJECTS));
        let reached = self.led_to(roots);
        reached.into_iter().filter_map(|index| self.image.functions.get(index)).collect()
    }

    /// The functions that have one of these in their names.
    pub(super) fn named(&self, names: &[&str]) -> impl Iterator<Item = usize> {
        let functions = self.image.functions.iter().enumerate();
        let named = functions.filter(|(_, f)| names.iter().any(|name| f.name.contains(name)));
        named.map(|(index, _)| index)
    }

    /// These functions, and all that they lead to.
    pub(super) fn led_to(&self, from: impl IntoIterator<Item = usize>) -> BTreeSet<usize> {
        let mut reached: BTreeSet<Node> = BTreeSet::new();
        let mut open: Vec<Node> = from.into_iter().map(Node::Function).collect();
        while let Some(node) = open.pop() {
            if reached.insert(node) {
                open.extend(self.edges.get(&node).into_iter().flatten());
            }
        }
        reached.iter().filter_map(function).collect()
    }

    /// The functions whose address is in data, or is loaded by an instruction.
    pub(super) const fn taken(&self) -> &BTreeSet<usize> {
        &self.taken
    }

    /// Those of these functions that lead to a function at once.
    pub(super) fn callers(&self, of: usize, among: &BTreeSet<usize>) -> Vec<&'a Function> {
        let to = Node::Function(of);
        let leads = |index: &&usize| {
            self.edges.get(&Node::Function(**index)).is_some_and(|edges| edges.contains(&to))
        };
        among.iter().filter(leads).filter_map(|index| self.image.functions.get(*index)).collect()
    }
}

const fn data(node: &Node) -> Option<u64> {
    match node {
        Node::Data(at) => Some(*at),
        Node::Function(_) => None,
    }
}

const fn function(node: &Node) -> Option<usize> {
    match node {
        Node::Function(index) => Some(*index),
        Node::Data(_) => None,
    }
}

/// An address in an instruction.
enum Named {
    /// It goes on there.
    Branch(u64),
    /// What may be an address.
    Value(u64),
}

/// Those that an instruction names.
fn addresses(instruction: &Instruction) -> Vec<Named> {
    let mut named = Vec::new();
    for operand in 0..instruction.op_count() {
        let kind = instruction.op_kind(operand);
        if matches!(kind, OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64) {
            named.push(Named::Branch(instruction.near_branch_target()));
        } else if kind == OpKind::Memory {
            named.push(Named::Value(instruction.memory_displacement64()));
        } else if matches!(
            kind,
            OpKind::Immediate64 | OpKind::Immediate32 | OpKind::Immediate32to64
        ) {
            named.push(Named::Value(instruction.immediate(operand)));
        }
    }
    if instruction.mnemonic() == Mnemonic::Nop {
        named.clear();
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 6] = [
        "<kernel::run::Running<X>>::run",
        "called",
        "in_a_table",
        "not_called",
        "<V as arch::iommu::Iommu>::map",
        "calls_the_loop",
    ];

    /// Functions of 16 bytes from 0x1000: the loop enters by VMRUN, calls the second and loads the address of a
    /// table that holds the third; the second has a number that is an address in the fourth; the last calls the loop.
    fn image() -> Image {
        let code: [(usize, &[u8]); 5] = [
            (0, &[0x0F, 0x01, 0xD8]),
            (3, &[0xE8, 8, 0, 0, 0]),
            (8, &[0x48, 0xC7, 0xC0, 0x08, 0x20, 0, 0]),
            (16, &[0xB8, 0x38, 0x10, 0, 0]),
            (80, &[0xE8, 0xAB, 0xFF, 0xFF, 0xFF]),
        ];
        Image::of_test(&NAMES, &code, &[0x1030, 0, 0x1020, 0])
    }

    fn reach(image: &Image, vendor: Vendor) -> Vec<String> {
        Graph::new(image).reach(vendor).into_iter().map(|f| f.name.clone()).collect()
    }

    #[test]
    fn calls_tables_and_named_objects_are_followed_and_callers_are_not() {
        assert_eq!(reach(&image(), Vendor::AmdV), [NAMES[0], NAMES[1], NAMES[2], NAMES[4]]);
        assert!(reach(&image(), Vendor::VtX).is_empty(), "it has no VMLAUNCH");
    }

    #[test]
    fn a_loop_of_another_name_is_noticed_not_counted_as_nothing() {
        let mut image = image();
        image.functions[0].name = "renamed".to_owned();
        assert!(reach(&image, Vendor::AmdV).is_empty());
    }
}

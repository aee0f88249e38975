//! QEMU's plugin interface, as far as it is used here (QEMU documentation: "QEMU TCG Plugins", API
//! version 4, QEMU 9.2 and later).

use std::ffi::{c_char, c_int, c_uint, c_void};

/// The version that this plugin was written for.
pub(crate) const VERSION: c_int = 4;

/// What QEMU calls this plugin.
pub(crate) type Id = u64;

/// A translation block, opaque.
#[repr(C)]
pub(crate) struct Block([u8; 0]);

/// An instruction of a block, opaque.
#[repr(C)]
pub(crate) struct Instruction([u8; 0]);

/// Memory with one entry for each virtual CPU, opaque.
#[repr(C)]
pub(crate) struct Scoreboard([u8; 0]);

/// A register, opaque.
#[repr(C)]
pub(crate) struct Register([u8; 0]);

/// A counter in each entry of a scoreboard.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Counter {
    /// Where it is.
    pub(crate) score: *mut Scoreboard,
    /// Offset in an entry, in bytes.
    pub(crate) offset: usize,
}

/// GLib's `GArray` and `GByteArray`: their public part.
#[repr(C)]
pub(crate) struct Array {
    /// The elements.
    pub(crate) data: *mut c_void,
    /// How many.
    pub(crate) length: c_uint,
}

/// A register of the CPU, by name.
#[repr(C)]
pub(crate) struct RegisterDescriptor {
    /// To read it by.
    pub(crate) handle: *mut Register,
    /// Its name as GDB has it.
    pub(crate) name: *const c_char,
    /// The feature that it belongs to.
    pub(crate) feature: *const c_char,
}

/// A callback with what was given at its registration.
pub(crate) type Callback = extern "C" fn(c_uint, *mut c_void);

/// `enum qemu_plugin_cb_flags`: the callback reads no registers.
pub(crate) const NO_REGISTERS: c_int = 0;
/// The same: it reads them.
pub(crate) const READS_REGISTERS: c_int = 1;
/// `enum qemu_plugin_op`: add an immediate value.
pub(crate) const ADD: c_int = 0;

unsafe extern "C" {
    pub(crate) fn qemu_plugin_register_vcpu_init_cb(id: Id, callback: extern "C" fn(Id, c_uint));
    pub(crate) fn qemu_plugin_register_vcpu_tb_trans_cb(
        id: Id,
        callback: extern "C" fn(Id, *mut Block),
    );
    pub(crate) fn qemu_plugin_register_atexit_cb(
        id: Id,
        callback: extern "C" fn(Id, *mut c_void),
        data: *mut c_void,
    );
    pub(crate) fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    pub(crate) fn qemu_plugin_tb_get_insn(block: *const Block, index: usize) -> *mut Instruction;
    pub(crate) fn qemu_plugin_insn_data(
        instruction: *const Instruction,
        to: *mut c_void,
        length: usize,
    ) -> usize;
    pub(crate) fn qemu_plugin_insn_vaddr(instruction: *const Instruction) -> u64;
    pub(crate) fn qemu_plugin_insn_haddr(instruction: *const Instruction) -> *mut c_void;
    pub(crate) fn qemu_plugin_register_vcpu_insn_exec_cb(
        instruction: *mut Instruction,
        callback: Callback,
        flags: c_int,
        data: *mut c_void,
    );
    pub(crate) fn qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(
        instruction: *mut Instruction,
        operation: c_int,
        counter: Counter,
        operand: u64,
    );
    pub(crate) fn qemu_plugin_scoreboard_new(element_bytes: usize) -> *mut Scoreboard;
    pub(crate) fn qemu_plugin_u64_get(counter: Counter, cpu: c_uint) -> u64;
    pub(crate) fn qemu_plugin_num_vcpus() -> c_int;
    pub(crate) fn qemu_plugin_get_registers() -> *mut Array;
    pub(crate) fn qemu_plugin_read_register(register: *mut Register, to: *mut Array) -> c_int;
    pub(crate) fn qemu_plugin_read_memory_vaddr(at: u64, to: *mut Array, length: usize) -> bool;
    /// GLib's, which QEMU brings along.
    pub(crate) fn g_byte_array_new() -> *mut Array;
    /// GLib's: frees the array, and with `true` its elements.
    pub(crate) fn g_byte_array_free(array: *mut Array, elements: c_int) -> *mut u8;
}

// The device plugin `vtd` for Bochs 3.0: what the Rust crates `devices` (the models) and `bochs-devices` (its
// C functions) need of Bochs. A line of Bochs' configuration loads it and says what there is:
//
//   vtd: nvme="4:disk.img", report="counters", eim=0
//
// Bochs gives its plugins C++ classes with virtual functions, so this part cannot be Rust. It decides nothing.
//
// Facts of Bochs that it relies on:
// * Plugins of the kind "optional" are initialised after the I/O APIC, so its place can be taken.
// * A PCI device that has chosen its number keeps it, and takes none of Bochs' five slots.
// * `pci_write_handler_common` knows BARs of 32 bits only. It leaves a device alone whose own copy of the
//   header type is 1; what the CPU reads comes from the model.
// * Memory handlers may overlap within 64 KiB of each other only if they do not share a page.
// * A timer falls due at the end of the basic block in which its tick lies.
#define BX_PLUGGABLE
#include "iodev.h"

#include <algorithm>
#include <dlfcn.h>
#include <memory>
#include <vector>

// The Rust side, as in src/lib.rs ------------------------------------------------------------------------------

struct Devices;
extern "C" {
Devices *vtd_new();
bool vtd_option(Devices *, const char *text, size_t length, char *sentence, size_t room);
bool vtd_start(Devices *, Bit8u processors, char *sentence, size_t room);
Bit64u vtd_unit_base(Devices *);
Bit8u vtd_controller(Devices *, size_t place);
void vtd_reset(Devices *);
bool vtd_rsdp(Devices *, Bit8u *rsdp);
Bit8u vtd_table_byte(Devices *, size_t offset);
void vtd_timer(Devices *, Bit32u timer);
Bit32u vtd_unit_read(Devices *, Bit32u offset);
void vtd_unit_write(Devices *, Bit32u offset, Bit32u value);
Bit32u vtd_io_apic_read(Devices *, Bit32u offset);
void vtd_io_apic_write(Devices *, Bit32u offset, Bit32u value);
void vtd_line(Devices *, Bit8u line, bool up);
void vtd_end_of_interrupt(Devices *, Bit8u vector);
Bit8u vtd_config_read(Devices *, size_t place, size_t at);
void vtd_config_write(Devices *, size_t place, size_t at, Bit32u value, size_t length);
Bit64u vtd_bar(Devices *, size_t place);
Bit32u vtd_read(Devices *, size_t place, Bit32u offset);
void vtd_write(Devices *, size_t place, Bit32u offset, Bit32u value);
void vtd_report(Devices *);
}

extern bool apic_bus_deliver_interrupt(Bit8u vector, Bit32u dest, Bit8u mode, bool logical, bool level, bool trigger);

static Devices *model;

// Windows of registers -----------------------------------------------------------------------------------------

// Registers are words: a read of other lengths gives the bytes of the words, such a write is ignored.
template <typename Read> static void read_words(Bit32u offset, unsigned len, void *data, Read read) {
  for (unsigned i = 0; i < len; i++)
    ((Bit8u *)data)[i] = (Bit8u)(read((offset + i) & ~3u) >> (offset + i) % 4 * 8);
}

template <typename Write> static void write_words(Bit32u offset, unsigned len, void *data, Write write) {
  if (len % 4 || offset % 4) return;
  for (unsigned i = 0; i < len; i += 4) {
    Bit32u value;
    memcpy(&value, (Bit8u *)data + i, 4);
    write(offset + i, value);
  }
}

static bool unit_read(bx_phy_address at, unsigned len, void *data, void *) {
  read_words(at & 0xfff, len, data, [](Bit32u offset) { return vtd_unit_read(model, offset); });
  return true;
}

static bool unit_write(bx_phy_address at, unsigned len, void *data, void *) {
  write_words(at & 0xfff, len, data, [](Bit32u offset, Bit32u value) { vtd_unit_write(model, offset, value); });
  return true;
}

static const Bit64u TABLES = 0xfed80000; // as acpi.rs says

static bool tables_read(bx_phy_address at, unsigned len, void *data, void *) {
  for (unsigned i = 0; i < len; i++) ((Bit8u *)data)[i] = vtd_table_byte(model, (size_t)(at + i - TABLES));
  return true;
}

static bool tables_write(bx_phy_address, unsigned, void *, void *) { return true; }

// The I/O APIC, in the place of Bochs' own ---------------------------------------------------------------------

class IoApic : public bx_ioapic_stub_c {
public:
  IoApic() { put("VTD-IOAPIC"); }
  // Where the chipset wants it.
  void set_enabled(bool on, Bit16u offset) override {
    if (enabled) DEV_unregister_memory_handlers(this, base, base + 0xfff);
    base = 0xfec00000 | offset;
    if (on) DEV_register_memory_handlers(this, read, write, base, base + 0xfff);
    enabled = on;
  }
  void receive_eoi(Bit8u vector) override { vtd_end_of_interrupt(model, vector); }
  void set_irq_level(Bit8u line, bool up) override { vtd_line(model, line, up); }

private:
  static bool read(bx_phy_address at, unsigned len, void *data, void *) {
    read_words(at & 0xfff, len, data, [](Bit32u offset) { return vtd_io_apic_read(model, offset); });
    return true;
  }
  static bool write(bx_phy_address at, unsigned len, void *data, void *) {
    write_words(at & 0xfff, len, data, [](Bit32u o, Bit32u value) { vtd_io_apic_write(model, o, value); });
    return true;
  }
  bool enabled = false;
  bx_phy_address base = 0;
};

// A controller on the bus --------------------------------------------------------------------------------------

class Controller : public bx_pci_device_c {
public:
  Controller(size_t place, Bit8u device) : place(place), devfunc(device << 3) {
    put("VTD-NVME");
    init_pci_conf(0x1234, 0x4e58, 1, 0x010802, 0, 0);
    pci_conf[0x0e] = 1;
    DEV_register_pci_handlers(this, &devfunc, "vtd", "NVMe controller behind VT-d");
  }
  Bit32u pci_read_handler(Bit8u at, unsigned len) override {
    Bit32u value = 0;
    for (unsigned i = 0; i < len; i++) value |= (Bit32u)vtd_config_read(model, place, at + i) << 8 * i;
    return value;
  }
  void pci_write_handler(Bit8u at, Bit32u value, unsigned len) override {
    vtd_config_write(model, place, at, value, len);
    follow_bar();
  }
  // Has the registers answer where the BAR says.
  void follow_bar() {
    bx_phy_address wanted = vtd_bar(model, place);
    if (wanted == bar) return;
    if (bar) DEV_unregister_memory_handlers(this, bar, bar + SIZE - 1);
    bar = wanted;
    if (bar) DEV_register_memory_handlers(this, read, write, bar, bar + SIZE - 1);
  }

private:
  static const Bit32u SIZE = 0x10000; // as config_space.rs says
  static bool read(bx_phy_address at, unsigned len, void *data, void *self) {
    size_t place = ((Controller *)self)->place;
    read_words(at % SIZE, len, data, [=](Bit32u offset) { return vtd_read(model, place, offset); });
    return true;
  }
  static bool write(bx_phy_address at, unsigned len, void *data, void *self) {
    size_t place = ((Controller *)self)->place;
    write_words(at % SIZE, len, data, [=](Bit32u offset, Bit32u value) { vtd_write(model, place, offset, value); });
    return true;
  }
  size_t place;
  Bit8u devfunc;
  bx_phy_address bar = 0;
};

// The plugin ---------------------------------------------------------------------------------------------------

class Plugin : public bx_devmodel_c {
public:
  Plugin() { put("VTD"); }
  ~Plugin() override {
    vtd_report(model);
    bx_devices.pluginIOAPIC = &bx_devices.stubIOAPIC;
  }
  void init() override;
  void reset(unsigned) override {
    vtd_reset(model);
    for (auto &one : controllers) one->follow_bar();
    bx_pc_system.activate_timer(firmware_timer, 1000, true);
  }
  // Bochs' firmware has no DMAR table: once its RSDP is there, it gets one.
  void look_for_tables() {
    for (bx_phy_address at = 0xe0000; at < 0x100000; at += 16) {
      Bit8u *bytes = BX_MEM(0)->getHostMemAddr(NULL, at, BX_READ);
      if (!bytes || memcmp(bytes, "RSD PTR ", 8) || !vtd_rsdp(model, bytes)) continue;
      bx_pc_system.deactivate_timer(firmware_timer);
      return;
    }
  }
  std::vector<unsigned> timers; // by the numbers of src/lib.rs

private:
  IoApic io_apic;
  std::vector<std::unique_ptr<Controller>> controllers;
  unsigned firmware_timer = 0;
};

static Plugin *plugin_object;
#define LOG_THIS plugin_object->

void Plugin::init() {
  char sentence[400];
  if (!vtd_start(model, BX_SMP_PROCESSORS, sentence, sizeof sentence)) {
    BX_PANIC(("%s", sentence));
    return;
  }
  if (bx_phy_address base = vtd_unit_base(model)) {
    DEV_register_memory_handlers(this, unit_read, unit_write, base, base + 0xfff);
    DEV_register_memory_handlers(&io_apic, tables_read, tables_write, TABLES, TABLES + 0xfff);
  }
  bx_devices.pluginIOAPIC->set_enabled(false, 0);
  bx_devices.pluginIOAPIC = &io_apic;
  io_apic.set_enabled(true, 0);
  while (Bit8u device = vtd_controller(model, controllers.size()))
    controllers.emplace_back(new Controller(controllers.size(), device));
  for (size_t number = 0; number < 1 + 2 * controllers.size(); number++)
    timers.push_back(bx_pc_system.register_timer_ticks((void *)number,
        [](void *number) { vtd_timer(model, (Bit32u)(size_t)number); }, 1000, false, false, "vtd"));
  bx_pc_system.register_timer_ticks(this, [](void *) { vtd_report(model); }, 1000000, true, true, "vtd-report");
  firmware_timer = bx_pc_system.register_timer(this,
      [](void *self) { ((Plugin *)self)->look_for_tables(); }, 1000, true, true, "vtd-firmware");
}

// What the Rust side calls, as in src/lib.rs -------------------------------------------------------------------

extern "C" {
// RAM alone: the size that Bochs was given, without the range of video memory and firmware.
bool bochs_memory(Bit64u at, Bit8u *data, size_t length, bool write) {
  Bit64u end = at + length;
  if (end < at || end > BX_MEM(0)->get_memory_len() || (at < 0x100000 && end > 0xa0000)) return false;
  while (length) { // a page at a time
    unsigned part = (unsigned)std::min<Bit64u>(length, 0x1000 - at % 0x1000);
    if (write) DEV_MEM_WRITE_PHYSICAL_DMA(at, part, data);
    else DEV_MEM_READ_PHYSICAL_DMA(at, part, data);
    at += part, data += part, length -= part;
  }
  return true;
}

void bochs_deliver(Bit8u vector, Bit32u destination, Bit8u mode, bool logical, bool level) {
  if (!apic_bus_deliver_interrupt(vector, destination, mode, logical, false, level))
    BX_INFO(("nobody takes vector %02x for %x", vector, destination));
}

Bit64u bochs_now() { return bx_pc_system.time_ticks(); }

void bochs_wake(Bit32u timer, Bit64u ticks) {
  if (timer < plugin_object->timers.size())
    bx_pc_system.activate_timer_ticks(plugin_object->timers[timer], ticks, false);
}

void bochs_cancel(Bit32u timer) {
  if (timer < plugin_object->timers.size()) bx_pc_system.deactivate_timer(plugin_object->timers[timer]);
}

void bochs_move_pin(Bit8u device, Bit8u pin, bool up) { DEV_pci_set_irq(device << 3, pin, up); }

Bit8u bochs_legacy_vector() { return DEV_pic_iac(); }

void bochs_log(const char *line, size_t length) { BX_INFO(("%.*s", (int)length, line)); }
}

// How Bochs finds it -------------------------------------------------------------------------------------------

static Bit32s take_options(const char *, int count, char *params[]) {
  for (int i = 1; i < count; i++) {
    char sentence[400];
    if (!vtd_option(model, params[i], strlen(params[i]), sentence, sizeof sentence)) BX_PANIC(("%s", sentence));
  }
  return 0;
}

static Bit32s save_options(FILE *) { return 0; }

// With another config.h Bochs' classes have other virtual functions, and calls go to wrong ones without a word:
// so two of those that are used must be where the headers have them.
#pragma GCC diagnostic ignored "-Wpmf-conversions"
static bool is_named(void *function, const char *name) {
  Dl_info info;
  return dladdr(function, &info) && info.dli_sname && strstr(info.dli_sname, name);
}

static bool same_bochs() {
  return is_named((void *)(SIM->*(&bx_simulator_interface_c::register_addon_option)), "register_addon_option")
      && is_named((void *)(SIM->*(&bx_simulator_interface_c::opt_plugin_ctrl)), "opt_plugin_ctrl");
}

extern "C" __attribute__((visibility("default"))) int libvtd_plugin_entry(plugin_t *, Bit16u, Bit8u);

PLUGIN_ENTRY_FOR_MODULE(vtd) {
  if (mode == PLUGIN_INIT) {
    if (!same_bochs()) {
      fprintf(stderr, "vtd: this plugin was built with the headers of another Bochs: take the one of "
                      "`.ci/setup bochs3`, and `make machines`\n");
      return 1;
    }
    model = vtd_new();
    plugin_object = new Plugin();
    BX_REGISTER_DEVICE_DEVMODEL(plugin, type, plugin_object, "vtd");
    SIM->register_addon_option("vtd", take_options, save_options);
  } else if (mode == PLUGIN_FINI) {
    SIM->unregister_addon_option("vtd");
    delete plugin_object;
  } else if (mode == PLUGIN_PROBE) {
    return (int)PLUGTYPE_OPTIONAL;
  } else if (mode == PLUGIN_FLAGS) {
    return PLUGFLAG_PCI;
  }
  return 0;
}

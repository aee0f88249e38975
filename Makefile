# A thin front to cargo and to the host program `nexit`. `make run` is all that a newcomer needs.
#
#   make run                    the demo: a Debian guest that owns an NVMe controller, on VT-x with VT-d in Bochs 3
#   make run EMULATOR=qemu      the same on AMD-V with VT-d in QEMU, with two network cards
#   make run EMULATOR=bochs IOMMU=none    on VT-x alone, with an IDE disk
#   make run EMULATOR=nested    the same on VT-x with VT-d, in nested KVM in Bochs: takes some minutes
#   make run ACCEL=kvm          on an Intel host with nested VT-x (never run by the makers)
#   make gdb                    the hypervisor in QEMU, stopped at its entry, under gdb (docs/debugging.md)
#   make test, make check       everything but what is slow; only what is quick
#   make test-all               what is slow, too: nested KVM
#   make zoo                    the small guest on every machine of tests/zoo (six minutes)
#   make fidelity               the same small guests bare and under Nexit: what they see otherwise (an hour, most of it nested KVM)
#   make mutants                lines taken out, one at a time, and which test notices
#   make models                 all orders in which CPUs see what they share
#   make fuzz [TIME=3600]       any input to the parsers, state machines and the exit policy (docs/fuzzing.md)
#   make iso                    a hybrid BIOS/UEFI image of CONFIG, to `dd` to a stick
#   make stats                  five measures of the trusted code, size of the image
#   make docs                   the book, in target/book
#   make bench [QUICK=1]        what it costs: bare, exitless, exiting, KVM with VFIO (bench/README.md)
#   make bench BENCH='--accel kvm'  the same by the TSC, in nested virtualization (never run)
#   make growth                 the last part of it: 1, 2, 4, 8 CPUs and guests

ACCEL    ?= tcg
# The machine that the product is for; only QEMU has an accelerator.
EMULATOR ?= $(if $(filter kvm,$(ACCEL)),qemu,bochs)
IOMMU    ?= vt-d
LOADER   ?= grub
CONFIG   ?= demo/$(MACHINE).toml
TIMEOUT  ?= $(if $(filter nested,$(EMULATOR)),1800,600)
ISO      ?= target/nexit.iso
REPORT   ?= target/report.json
# What `make test` lets the trusted code grow to (docs/trusted-code.md): whoever raises one says why.
MAX      := reached-vt-x=10400 reached-amd-v=10200 foreign-linked=3200 foreign-whole=53000 \
            code-bytes=830000 unsafe-blocks=340 untested-lines=6020
# What a whole `make bench` leaves in the tree: of each machine the newest results, and the history.
KEPT     := bench/results
KEEP     := $(if $(QUICK)$(BENCH),,--keep $(KEPT))

# The demo's configuration and devices are chosen by this.
MACHINE  := $(EMULATOR)$(if $(filter bochs-none,$(EMULATOR)-$(IOMMU)),-ide)

MDBOOK   := target/tools/bin/mdbook
MDBOOK_VERSION := 0.5.4

BUILD    := $(or $(CARGO_TARGET_DIR),target)
NEXIT    := $(BUILD)/debug/nexit
GUEST    := target/guest
HOST     := x86_64-unknown-linux-gnu
UEFI     := --release -p uefi-loader --target x86_64-unknown-uefi
PROGRAMS := $(BUILD)/$(HOST)/release

# The image is built by the pinned stable compiler; its target and its `core` are its own, which
# still takes the unstable options of that compiler.
BARE     := --release --target x86_64-hypervisor.json -Zjson-target-spec \
            -Zbuild-std=core,alloc,compiler_builtins \
            -Zbuild-std-features=compiler-builtins-mem
IMAGE    := -p kernel $(BARE)
# Small guests of the tests, built as the image is.
PAYLOADS := -p payload $(BARE)

# The devices of the demo, as arguments for the emulator that any user could give.
# Nested, the network cards have no ROMs: the BIOS would take its time for each.
ROM_nested  := ,romfile=
PAYLOAD     := guestfwd=tcp:10.0.2.100:80-cmd:cat $(GUEST)/stock/payload.bin
DEVICES_qemu = -blockdev driver=file,node-name=disk,read-only=on,filename=$(GUEST)/stock/disk.img \
               -device nvme,drive=disk,serial=nexit,addr=4 \
               -netdev 'user,id=net0,$(PAYLOAD)' -device e1000e,netdev=net0,addr=5$(ROM_$(EMULATOR)) \
               -netdev 'user,id=net1,$(PAYLOAD)' -device igb,netdev=net1,addr=6$(ROM_$(EMULATOR))
DEVICES_nested = $(DEVICES_qemu)
DEVICES_bochs = 'vtd: nvme="4:$(GUEST)/cloud/disk.img"'
DEVICES_bochs-ide = 'ata0-master: type=disk, path=$(GUEST)/cloud/disk.img, mode=flat, \
                     cylinders=64, heads=16, spt=63'

# The plugin that gives Bochs a VT-d unit and NVMe: Rust models with a C++ edge, and Bochs' own headers.
BOCHS        := target/bochs3
BOCHS_SOURCE := $(BOCHS)/source
BOCHS_PLUGIN := $(BOCHS)/plugins/libbx_vtd.so
MODELS       := $(BUILD)/release/libbochs_devices.a
CXXFLAGS     ?= -O2 -g
CXXFLAGS     += -std=c++17 -fPIC -fvisibility=hidden -fno-strict-aliasing -Wall -Wextra -Wno-unused-parameter

FUZZ     := $(BUILD)/fuzz
TIME     ?= 3600
# What has the compiler count coverage, and compares, for libFuzzer.
SANCOV   := -Cpasses=sancov-module $(addprefix -Cllvm-args=-sanitizer-coverage-,level=4 inline-8bit-counters pc-table trace-compares)

.PHONY: all docs editor run gdb demo image payloads uefi host programs machines iso test test-all repeat zoo fidelity mutants models fuzz check stats plugin bench growth setup clean

all: image uefi host

run: setup all demo $(if $(filter bochs,$(EMULATOR)),machines)
	$(NEXIT) run --config $(CONFIG) --emulator $(EMULATOR) --iommu $(IOMMU) --accel $(ACCEL) \
	    --timeout $(TIMEOUT) --report $(REPORT) -- $(DEVICES_$(MACHINE))

# The machine runs as long as gdb does; its console is in target/gdb.log. The image is one of its own, as the one that boots
# machines has line tables only.
GDB_SOCKET := target/gdb.socket
GDB_BUILD := target/gdb
GDB_IMAGE := $(GDB_BUILD)/x86_64-hypervisor/release/kernel
gdb: EMULATOR := qemu
gdb: setup host demo
	RUSTC_BOOTSTRAP=1 CARGO_PROFILE_RELEASE_DEBUG=full cargo build --locked $(IMAGE) --target-dir $(GDB_BUILD)
	@rm -f $(GDB_SOCKET); \
	$(NEXIT) run --image $(GDB_IMAGE) --config $(CONFIG) --iommu $(IOMMU) -- $(DEVICES_qemu) -S \
	    -chardev socket,id=gdb,path=$(GDB_SOCKET),server=on,wait=off -gdb chardev:gdb \
	    < /dev/null > target/gdb.log 2>&1 & run=$$!; trap 'kill $$run' EXIT; \
	for _ in $$(seq 100); do [ -S $(GDB_SOCKET) ] && break; sleep 0.1; done; \
	gdb -q -x demo/hypervisor.gdb $(GDB_IMAGE)

image:
	RUSTC_BOOTSTRAP=1 cargo build --locked $(IMAGE)

payloads:
	RUSTC_BOOTSTRAP=1 cargo build --locked $(PAYLOADS)

uefi:
	cargo build --locked $(UEFI)

host:
	cargo build --locked -p nexit

programs:
	RUSTFLAGS='-C target-feature=+crt-static' cargo build --locked --release -p guest-tools \
	    --target $(HOST) --config profile.release.strip=true

# Nothing where Bochs 3 is not to be had (`.ci/setup` said so).
machines:
	cargo build --locked --release -p bochs-devices
	@if [ -e $(BOCHS_SOURCE)/done ]; then $(MAKE) --no-print-directory $(BOCHS_PLUGIN); fi

$(BOCHS_PLUGIN): tests/machines/bochs/plugin.cc $(MODELS) $(BOCHS_SOURCE)/done
	mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -shared $(addprefix -isystem $(BOCHS_SOURCE)/,. iodev instrument/stubs) $< $(MODELS) \
	    -Wl,--exclude-libs,ALL -o $@.new
	mv $@.new $@

# apt's lists may be older than the kernel that they name: then once more with new ones.
demo: host programs
	@for kernel in stock cloud; do \
	    make_guest="$(NEXIT) demo --kernel $$kernel --programs $(PROGRAMS) \
	        --output $(GUEST)/$$kernel"; \
	    $$make_guest || { .ci/setup update && $$make_guest; } || exit 1; \
	done

iso: setup all demo
	$(NEXIT) image --config $(CONFIG) --loader $(LOADER) --output $(ISO)

test-all: SLOW := -- --include-ignored
test-all: test

# A test that fails now and then: TEST is a part of its name, RUNS how often, LOAD how many busy loops run beside it.
RUNS ?= 50
LOAD ?= 4
repeat: setup all demo payloads plugin machines
	@tests/repeat '$(TEST)' $(RUNS) $(LOAD)

test: setup all demo payloads plugin machines
	@status=0; \
	cargo test --locked --no-fail-fast || status=1; \
	cargo test --locked --no-fail-fast -p guest-tools -p nexit-bench -p bench-plugin || status=1; \
	cargo test --locked --no-fail-fast -p nexit-tests $(SLOW) || status=1; \
	$(NEXIT) stats $(addprefix --max ,$(MAX)) || status=1; \
	exit $$status

# The small guest on every machine of tests/zoo/machines.toml, by every road: docs/zoo.md.
zoo: setup all demo payloads
	cargo run --quiet --locked -p nexit-tests --bin zoo -- --output docs/zoo.md

# The same payloads on the bare machine and under Nexit, in each mode: docs/fidelity.md.
fidelity: setup all payloads machines
	cargo run --quiet --locked -p nexit-tests --bin fidelity -- --output docs/fidelity.md

# A million interrupts, a thousand restarts, an hour beside an attacker (PERCENT=1: a hundredth): docs/endurance.md.
endurance: setup all demo payloads machines
	cargo run --quiet --locked -p nexit-tests --bin endurance -- --output docs/endurance.md

# Takes lines out, one at a time, and says which test notices: docs/mutants.md.
mutants: setup all demo payloads
	cargo run --quiet --locked -p nexit-tests --bin mutants -- --output docs/mutants.md

# Every order in which CPUs can see each other's accesses to the words that they share without a lock.
models:
	RUSTFLAGS='--cfg loom' cargo test --locked -p guest -p eli -p mem --lib --target-dir target/loom model::

# TIME seconds in all, each target its part; its counts go into docs/fuzzing.md. KEEP=1: and new inputs into the corpora.
fuzz:
	cargo build --locked -p nexit-fuzz
	RUSTFLAGS='$(SANCOV)' cargo build --locked --profile fuzz -p nexit-fuzz --bin guided --features guided \
	    --target $(HOST) --target-dir $(FUZZ)
	nice -n 19 $(BUILD)/debug/nexit-fuzz guided --program $(FUZZ)/$(HOST)/fuzz/guided --folder $(FUZZ)/corpus \
	    --total $(TIME) $(if $(KEEP),--keep) $(if $(TARGET),--target $(TARGET)) --count docs/fuzzing.md

check: setup
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -Dwarnings
	cargo clippy --locked --all-targets -p guest-tools -p nexit-tests -p nexit-bench -p bench-plugin -p bochs-devices -p nexit-fuzz -- -Dwarnings
	RUSTC_BOOTSTRAP=1 cargo clippy --locked $(IMAGE) -- -Dwarnings
	RUSTC_BOOTSTRAP=1 cargo clippy --locked $(PAYLOADS) -- -Dwarnings
	cargo clippy --locked $(UEFI) -- -Dwarnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps --quiet
	cargo test --locked
	cargo test --locked -p guest-tools -p nexit-bench -p bench-plugin

# rust-analyzer calls this (.vscode/settings.json). Its output is for that program. Each target is checked even if
# another has errors.
editor:
	-@cargo clippy --quiet --locked --all-targets --message-format=json
	-@RUSTC_BOOTSTRAP=1 cargo clippy --quiet --locked --message-format=json $(IMAGE)
	-@RUSTC_BOOTSTRAP=1 cargo clippy --quiet --locked --message-format=json $(PAYLOADS)
	-@cargo clippy --quiet --locked --message-format=json $(UEFI)

# The book, in target/book. A warning is an error.
docs: $(MDBOOK)
	@log=$$($(MDBOOK) build 2>&1) || { echo "$$log"; exit 1; }; echo "$$log"; \
	case "$$log" in *WARN*|*ERROR*) exit 1 ;; esac

$(MDBOOK):
	cargo install --locked --root target/tools mdbook@$(MDBOOK_VERSION) --no-default-features --features search

stats: image host
	$(NEXIT) stats $(addprefix --max ,$(MAX)) $(if $(wildcard $(REPORT)),--report $(REPORT))

# Counts instructions in QEMU: for `bench` and the tests.
plugin:
	cargo build --locked --release -p bench-plugin

bench: setup image payloads host programs plugin machines
	cargo build --locked -p nexit-bench
	@run="$(BUILD)/debug/nexit-bench run $(if $(QUICK),--quick) --programs $(PROGRAMS) \
	    --payload $(BUILD)/x86_64-hypervisor/release/micro \
	    --plugin $(BUILD)/release/libnexit_count.so $(KEEP) $(BENCH)"; \
	$$run || { .ci/setup update && $$run; }
	$(if $(QUICK)$(BENCH),,$(MAKE) growth)
	$(if $(KEEP),$(BUILD)/debug/nexit-bench report --pictures docs/pictures/bench)
	-@$(BUILD)/debug/nexit-bench compare

growth: image payloads host plugin
	cargo build --locked -p nexit-bench
	$(BUILD)/debug/nexit-bench growth --payloads $(BUILD)/x86_64-hypervisor/release \
	    --plugin $(BUILD)/release/libnexit_count.so --results target/bench/results/growth $(KEEP)

setup:
	@.ci/setup

clean:
	cargo clean

# SPDX-License-Identifier: GPL-2.0-or-later
VERSION := $(shell cat version)
NAME := qubes-usb-proxy-$(VERSION)
TARBALL := dist/$(NAME).tar.gz
EPOCH := $(shell sed -n 's/^ -- .*>  //p' debian/changelog | head -n 1 | date -f - +%s)

# A version manager's Python or PYTHONDONTWRITEBYTECODE would end up in what is built.
SYSTEM := env -u PYTHONDONTWRITEBYTECODE PATH=/usr/sbin:/usr/bin:/sbin:/bin SOURCE_DATE_EPOCH=$(EPOCH)

PRIVATE := /usr/lib/qubes-usb-proxy
PROGRAMS := usb-detach-all usb-export usb-import usb-reset
SERVICES := qubes.USB qubes.USBAttach qubes.USBDetach
SUSPEND := /etc/qubes/suspend-pre.d/usb-detach-all.sh
SOURCES := .editorconfig .qubesbuilder CONTRIBUTING.md LICENSE Makefile README.md archlinux debian \
	docs programs pyproject.toml qubes-rpc rpm_spec tests udev usb_proxy version

# What the lab and the checks need on Debian 12 or 13; installed when it is missing.
LAB_TOOLS := build-essential debhelper dh-python qemu-system-x86 mmdebstrap busybox-static \
	apt-utils e2fsprogs python3 util-linux
CHECK_TOOLS := $(LAB_TOOLS) python3-venv shellcheck
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
TEST := -m pytest -p no:cacheprovider
PYTHON := build/venv/bin/python

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

install-vm: ## install the program of a qube, below DESTDIR if that is set
	install -d $(DESTDIR)$(PRIVATE)/usb_proxy/commands $(DESTDIR)/usr/lib/qubes \
		$(DESTDIR)/etc/qubes-rpc $(DESTDIR)/etc/qubes/rpc-config $(DESTDIR)/usr/lib/udev/rules.d \
		$(DESTDIR)$(dir $(SUSPEND))
	install -m 0755 programs/launch $(DESTDIR)$(PRIVATE)
	install -m 0644 usb_proxy/*.py $(DESTDIR)$(PRIVATE)/usb_proxy
	install -m 0644 usb_proxy/commands/*.py $(DESTDIR)$(PRIVATE)/usb_proxy/commands
	install -m 0755 $(PROGRAMS:%=programs/%) $(DESTDIR)/usr/lib/qubes
	install -m 0755 $(SERVICES:%=qubes-rpc/%) $(DESTDIR)/etc/qubes-rpc
	install -m 0644 qubes-rpc/qubes.USB.config $(DESTDIR)/etc/qubes/rpc-config/qubes.USB
	install -m 0644 udev/80-qubes-usb-reset.rules $(DESTDIR)/usr/lib/udev/rules.d
	ln -sfn /usr/lib/qubes/usb-detach-all $(DESTDIR)$(SUSPEND)
	$(SYSTEM) python3 -m compileall -q -f $(if $(DESTDIR),-s $(DESTDIR) -p /) \
		$(DESTDIR)$(PRIVATE)/usb_proxy

uninstall-vm: ## remove what install-vm installed
	rm -rf $(DESTDIR)$(PRIVATE)
	rm -f $(PROGRAMS:%=$(DESTDIR)/usr/lib/qubes/%) $(SERVICES:%=$(DESTDIR)/etc/qubes-rpc/%) \
		$(DESTDIR)/etc/qubes/rpc-config/qubes.USB $(DESTDIR)$(SUSPEND) \
		$(DESTDIR)/usr/lib/udev/rules.d/80-qubes-usb-reset.rules

dist: $(TARBALL) ## the source tarball, in dist/

$(TARBALL): $(shell find $(wildcard $(SOURCES)) -type f -not -name '*.pyc')
	mkdir -p dist
	tar --create --file - --sort=name --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw,a-s \
		--mtime=@$(EPOCH) --exclude=__pycache__ --transform='s,^,$(NAME)/,' \
		$(wildcard $(SOURCES)) | gzip -n -9 > $@

deb: $(TARBALL) ## the Debian package, in dist/
	rm -rf build/deb
	mkdir -p build/deb
	tar -C build/deb -xf $(TARBALL)
	cd build/deb/$(NAME) && $(SYSTEM) dpkg-buildpackage --build=binary --no-sign > ../log 2>&1 || \
		{ cat ../log; exit 1; }
	cp build/deb/*.deb dist

demo: ## carry a USB stick from one virtual machine to another, and back
	@tests/setup.sh $(LAB_TOOLS)
	@echo "building the package"
	@$(MAKE) --silent deb
	@$(SUDO) env PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 tests/lab/demo.py

check: check-quick check-lab ## all tests, in the lab too

check-quick: $(PYTHON) ## the tests that need no guest
	$(PYTHON) $(TEST) tests/unit tests/static

check-lab: $(PYTHON) deb ## the tests in the lab
	$(SUDO) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) $(TEST) tests/lab tests/integration

$(PYTHON): tests/requirements.txt
	@tests/setup.sh $(CHECK_TOOLS)
	rm -rf build/venv
	/usr/bin/python3 -m venv build/venv
	$(PYTHON) -m pip install --quiet --requirement tests/requirements.txt
	@touch $@

clean: ## remove what was built
	rm -rf build dist

.PHONY: help install-vm uninstall-vm dist deb demo check check-quick check-lab clean

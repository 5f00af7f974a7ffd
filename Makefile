# SPDX-License-Identifier: GPL-2.0-or-later
VERSION := $(shell cat version)
REL := 1
NAME := qubes-usb-proxy-$(VERSION)
MAINTAINER := $(shell sed -n 's/^ -- \(.*\)  .*/\1/p' debian/changelog | head -n 1)
TARBALL := dist/$(NAME).tar.gz
EPOCH := $(shell sed -n 's/^ -- .*>  //p' debian/changelog | head -n 1 | date -f - +%s)

# A version manager's Python, PYTHONDONTWRITEBYTECODE or a umask would end up in what is built.
ENV := env -u PYTHONDONTWRITEBYTECODE PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
	SOURCE_DATE_EPOCH=$(EPOCH)
SYSTEM := umask 022 && $(ENV)

PRIVATE := /usr/lib/qubes-usb-proxy
MAN := /usr/share/man
BASH := /usr/share/bash-completion/completions
FISH := /usr/share/fish/vendor_completions.d
# Debian's zsh keeps what packages bring apart (its README.Debian).
ZSH := /usr/share/zsh/$(if $(wildcard /etc/debian_version),vendor-completions,site-functions)
SITE = $(shell PATH=/usr/bin:/bin python3 -c 'import sysconfig as s; print(s.get_path("purelib", \
	"deb_system" if "deb_system" in s.get_scheme_names() else "posix_prefix", {"base": "/usr"}))')
EGG = $(SITE)/qubes_usb_proxy_dom0-$(VERSION).egg-info
SOURCES := .editorconfig .qubesbuilder CONTRIBUTING.md LICENSE MANIFEST.in Makefile README.md \
	SECURITY.md archlinux completion debian docs man policy polkit programs pyproject.toml qubes-rpc \
	rpm_spec setup.py stdeb.cfg sudoers tests udev usb_proxy version

# What the lab, the packages and the checks need on Debian 12 or 13; installed when it is missing.
LAB_TOOLS := build-essential debhelper dh-python qemu-system-x86 mmdebstrap busybox-static \
	apt-utils e2fsprogs gpg gpg-agent python3 util-linux
PACKAGE_TOOLS := build-essential debhelper dh-python python3-all python3-setuptools python3-stdeb \
	rpm makepkg pacman-package-manager libarchive-tools fakeroot zstd apt-utils createrepo-c gpg \
	gpg-agent
CHECK_TOOLS := $(LAB_TOOLS) $(PACKAGE_TOOLS) python3-venv shellcheck devscripts lintian rpmlint \
	bash-completion fish zsh systemd mandoc libxml2-utils polkitd sudo dnf autopkgtest
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
TEST := -m pytest -p no:cacheprovider
PYTHON := build/venv/bin/python
VENV := build/venv/ready

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

install-vm: ## install the program of a qube, below DESTDIR if that is set
	install -Dm 0755 -t $(DESTDIR)$(PRIVATE) programs/launch
	install -Dm 0644 -t $(DESTDIR)$(PRIVATE)/usb_proxy usb_proxy/*.py
	install -Dm 0644 -t $(DESTDIR)$(PRIVATE)/usb_proxy/catalogue usb_proxy/catalogue/*.py
	install -Dm 0644 -t $(DESTDIR)$(PRIVATE)/usb_proxy/commands usb_proxy/commands/*.py
	install -Dm 0644 -t $(DESTDIR)$(PRIVATE)/usb_proxy/tool usb_proxy/tool/*.py
	install -Dm 0755 -t $(DESTDIR)/usr/bin programs/qubes-usb-proxy
	install -Dm 0755 -t $(DESTDIR)/usr/lib/qubes programs/usb-*
	install -Dm 0755 -t $(DESTDIR)/etc/qubes-rpc $(filter-out %.config,$(wildcard qubes-rpc/*))
	install -Dm 0644 qubes-rpc/qubes.USB.config $(DESTDIR)/etc/qubes/rpc-config/qubes.USB
	mkdir -pm 0750 $(DESTDIR)/etc/sudoers.d
	install -m 0440 -t $(DESTDIR)/etc/sudoers.d sudoers/*
	install -Dm 0644 -t $(DESTDIR)/usr/lib/udev/rules.d udev/*
	install -Dm 0644 -t $(DESTDIR)/usr/share/polkit-1/actions polkit/*
	install -Dm 0644 completion/bash $(DESTDIR)$(BASH)/qubes-usb-proxy
	install -Dm 0644 completion/zsh $(DESTDIR)$(ZSH)/_qubes-usb-proxy
	install -Dm 0644 completion/fish $(DESTDIR)$(FISH)/qubes-usb-proxy.fish
	install -Dm 0644 -t $(DESTDIR)/usr/share/doc/qubes-usb-proxy README.md SECURITY.md
	install -Dm 0644 -t $(DESTDIR)/usr/share/doc/qubes-usb-proxy/docs docs/*.md docs/*.svg
	install -Dm 0644 -t $(DESTDIR)$(MAN)/man7 man/*.7
	install -Dm 0644 -t $(DESTDIR)$(MAN)/man8 man/*.8
	gzip -9nf $(patsubst man/%,$(DESTDIR)$(MAN)/man7/%,$(wildcard man/*.7)) \
		$(patsubst man/%,$(DESTDIR)$(MAN)/man8/%,$(wildcard man/*.8))
	install -dm 0755 $(DESTDIR)/etc/qubes/suspend-pre.d
	ln -sfn /usr/lib/qubes/usb-detach-all $(DESTDIR)/etc/qubes/suspend-pre.d/usb-detach-all.sh
	$(call compile,$(PRIVATE)/usb_proxy)

install-dom0: ## install the extension of dom0, below DESTDIR if that is set
	mkdir -p build/dom0
	$(SYSTEM) python3 -W ignore setup.py -q egg_info --egg-base build/dom0 \
		build --build-base build/dom0 install --root $(or $(DESTDIR),/) --no-compile \
		--prefix /usr --install-data /usr --install-lib $(SITE)
	rm -rf build/dom0 $(DESTDIR)$(EGG)
	mv $(DESTDIR)$(EGG:.egg-info=-py*.egg-info) $(DESTDIR)$(EGG)
	rm $(DESTDIR)$(EGG)/SOURCES.txt
	$(call compile,$(SITE)/usb_proxy)

# Byte code that is as old as its source, whenever that is: packages give both the same time.
define compile
find $(DESTDIR)$(1) -name '*.py' -exec touch --date=@$(EPOCH) {} +
$(SYSTEM) python3 -m compileall -q -f --invalidation-mode timestamp \
	$(if $(DESTDIR),-s $(DESTDIR) -p /) $(DESTDIR)$(1)
endef

uninstall-vm: ## remove what install-vm installed
uninstall-dom0: ## remove what install-dom0 installed
uninstall-vm uninstall-dom0: uninstall-%:
	rm -rf build/uninstall
	$(MAKE) --silent install-$* DESTDIR=build/uninstall
	cd build/uninstall && find . ! -type d -printf '%P\0' > ../files && \
		find . -depth -mindepth 1 -type d -printf '%P\0' > ../folders
	rm -rf build/uninstall
	cd $(DESTDIR)/ && xargs -0 rm -f < $(CURDIR)/build/files
	cd $(DESTDIR)/ && xargs -0 rmdir --ignore-fail-on-non-empty < $(CURDIR)/build/folders

# The sources in a folder of the given name, in a tarball.
pack = tar --create --sort=name --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw,a-s \
	--mtime=@$(EPOCH) --exclude=__pycache__ --transform='s,^,$(1)/,' \
	--use-compress-program='gzip -9n' --file $(2) $(wildcard $(SOURCES))

dist: $(TARBALL) ## the source tarball, in dist/

$(TARBALL): $(shell find $(wildcard $(SOURCES)) -type f -not -name '*.pyc')
	mkdir -p dist
	$(call pack,$(NAME),$@)

packages: package-tools deb rpm arch dom0-deb ## all packages, in dist/

package-tools: ## install what building them needs, on Debian
	@tests/setup.sh $(PACKAGE_TOOLS)

SPECS := build/rpm_spec/qubes-usb-proxy.spec build/rpm_spec/qubes-usb-proxy-dom0.spec

# What a build tells is of interest when it fails.
quietly = > build/$@/log 2>&1 || { cat build/$@/log; exit 1; }

deb: $(TARBALL) ## the Debian package of a qube
	rm -rf build/deb
	mkdir -p build/deb
	$(SYSTEM) tar -C build/deb -xf $(TARBALL)
	(cd build/deb/$(NAME) && $(SYSTEM) dpkg-buildpackage --build=source,all --no-sign) $(quietly)
	cp build/deb/*.deb build/deb/*.dsc build/deb/*.tar.xz dist

rpm: $(TARBALL) $(SPECS) ## the rpm packages of a qube and of dom0
	rm -rf build/rpm
	mkdir -p build/rpm
	$(SYSTEM) rpmbuild -bb $(if $(wildcard /etc/debian_version),--nodeps) \
		--define '_topdir $(CURDIR)/build/rpm' --define '_sourcedir $(CURDIR)/dist' \
		--define '_buildhost localhost' --define 'use_source_date_epoch_as_buildtime 1' \
		--define 'clamp_mtime_to_source_date_epoch 1' \
		$(SPECS) $(quietly)
	cp build/rpm/RPMS/noarch/*.rpm dist

# makepkg refuses to run as root and notes where it runs: a name space of its own changes both.
arch: build/archlinux/PKGBUILD $(TARBALL) ## the Arch Linux package of a qube
	rm -rf build/arch
	mkdir -p build/arch
	$(call pack,$(NAME)-$(REL),build/arch/$(NAME)-$(REL).tar.gz)
	cp $< build/arch
	unshare --map-root-user --mount sh -ec 'mount --bind build/arch /mnt; cd /mnt; \
		exec unshare --user --map-user=1000 --map-group=1000 $(ENV) HOME=/mnt \
		PKGEXT=.pkg.tar.zst makepkg --nodeps' $(quietly)
	cp build/arch/*.pkg.tar.zst dist

dom0-deb: $(TARBALL) ## the Debian package of dom0
	rm -rf build/dom0-deb
	mkdir -p build/dom0-deb
	$(SYSTEM) tar -C build/dom0-deb -xf $(TARBALL)
	(cd build/dom0-deb/$(NAME) && $(SYSTEM) python3 setup.py --command-packages=stdeb.command \
		sdist_dsc --compat 13 bdist_deb) $(quietly)
	cp build/dom0-deb/$(NAME)/deb_dist/*.deb dist

build/%: %.in version debian/changelog
	mkdir -p $(@D)
	LC_ALL=C date -ud @$(EPOCH) '+* %a %b %d %Y $(MAINTAINER) - $(VERSION)-$(REL)' > build/changes
	sed -n 's/^  \* /- /p; s/^    /  /p; /^ -- /q' debian/changelog >> build/changes
	sed -e 's/@VERSION@/$(VERSION)/' -e 's/@REL@/$(REL)/' -e '/@CHANGELOG@/{r build/changes' \
		-e 'd}' $< > $@

# For users of REPO at URL, signed with the user's key KEY or, without, a throw-away key in GNUPG.
DIST := dist
REPO := dist/repo
URL := file://$(CURDIR)/dist/repo
GNUPG := build/gnupg
SIGN = gpg --batch --yes --quiet $(if $(KEY),--local-user $(KEY),--homedir $(GNUPG)) --armor
END_SIGN = $(if $(KEY),,gpgconf --homedir $(GNUPG) --kill gpg-agent)

repo: apt-repo dnf-repo ## repositories for apt and dnf of what is in dist/, see Makefile

apt-repo: $(if $(KEY),,$(GNUPG)) ## the one for apt alone
	rm -rf $(REPO)/apt
	mkdir -p $(REPO)/apt
	cp $(DIST)/*.deb $(REPO)/apt
	cd $(REPO)/apt && apt-ftparchive packages . > Packages
	cd $(REPO)/apt && apt-ftparchive release . > ../Release
	mv $(REPO)/Release $(REPO)/apt
	$(SIGN) --output $(REPO)/apt/InRelease --clear-sign $(REPO)/apt/Release
	$(SIGN) --output $(REPO)/qubes-usb-proxy.asc --export $(KEY)
	printf '%s\n' 'deb [signed-by=/etc/apt/keyrings/qubes-usb-proxy.asc] $(URL)/apt ./' \
		> $(REPO)/qubes-usb-proxy.list
	$(END_SIGN)

dnf-repo: $(if $(KEY),,$(GNUPG)) ## the one for dnf alone
	rm -rf $(REPO)/dnf
	mkdir -p $(REPO)/dnf
	cp $(DIST)/*.rpm $(REPO)/dnf
	createrepo_c --quiet --no-database $(REPO)/dnf
	$(SIGN) --detach-sign $(REPO)/dnf/repodata/repomd.xml
	$(SIGN) --output $(REPO)/qubes-usb-proxy.asc --export $(KEY)
	printf '%s\n' '[qubes-usb-proxy]' 'name=qubes-usb-proxy' 'baseurl=$(URL)/dnf' 'gpgcheck=0' \
		'repo_gpgcheck=1' 'gpgkey=$(URL)/qubes-usb-proxy.asc' > $(REPO)/qubes-usb-proxy.repo
	$(END_SIGN)

$(GNUPG):
	mkdir -p -m 0700 $@
	gpg --homedir $@ --batch --quiet --passphrase '' \
		--quick-generate-key 'qubes-usb-proxy, throw-away' ed25519 sign never

demo: ## carry a USB stick from one virtual machine to another, and back
	@tests/setup.sh $(LAB_TOOLS)
	@echo "building the package"
	@$(MAKE) --silent deb
	@$(SUDO) env PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 tests/lab/demo.py

demo-picture: ## make demo, and draw what it prints: docs/demo.svg
	/usr/bin/python3 -m tests.docs.picture

check: check-quick check-packages check-lab ## all tests, in the lab too

check-quick: $(VENV) ## the tests that need no guest
	$(PYTHON) $(TEST) tests/unit tests/dom0 tests/static tests/fuzz tests/docs

check-packages: $(VENV) ## the tests of all packages: as root, for their installation
	@tests/setup.sh $(sort $(CHECK_TOOLS))
	$(SUDO) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) $(TEST) tests/packaging

check-lab: $(VENV) deb ## the tests in the lab, with a short part of those of faults and phones
	$(SUDO) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) $(TEST) tests/lab tests/integration tests/bench
	$(SUDO) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) $(TEST) -m short tests/faults
	$(SUDO) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) $(TEST) -m short tests/phones

check-faults: $(VENV) deb ## whatever dies, or is pulled out, or lies: all tests of faults
	$(SUDO) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) $(TEST) tests/faults

check-phones: $(VENV) deb ## all tests with a device that leaves the bus, in the lab: half an hour
	$(SUDO) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) $(TEST) tests/phones

$(VENV): tests/requirements.txt
	@tests/setup.sh $(sort $(CHECK_TOOLS))
	rm -rf build/venv
	/usr/bin/python3 -m venv build/venv
	$(PYTHON) -m pip install --quiet --requirement tests/requirements.txt
	@touch $@

SECONDS := 60
fuzz: $(VENV) ## fuzz each parser for SECONDS, or those in TARGETS; finds go to build/fuzz
	$(PYTHON) -m tests.fuzz --all $(SECONDS) $(TARGETS)

HOURS := 1
soak: $(VENV) deb ## HOURS of random cycles in the lab, or CYCLES of them; SEED= repeats a run
	$(SUDO) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.soak --hours $(HOURS) \
		$(addprefix --cycles ,$(CYCLES)) $(addprefix --seed ,$(SEED)) $(addprefix --first ,$(FIRST))

BENCH = $(SUDO) env PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m tests.bench
RUNS := 10
CASES :=

bench: $(VENV) ## what an attach costs, in virtual time: docs/performance.md
	@tests/setup.sh $(LAB_TOOLS) hwdata
	$(BENCH) --runs $(RUNS) $(if $(REFERENCE),--reference $(REFERENCE)) $(CASES)

bench-plot: $(VENV) ## where the time of an attach goes: docs/attach.svg
	@tests/setup.sh $(LAB_TOOLS)
	$(BENCH).plot

errors: ## write docs/troubleshooting.md and its man page from usb_proxy/catalogue
	/usr/bin/python3 -m tests.docs.catalogue

clean: ## remove what was built
	rm -rf build dist

.DELETE_ON_ERROR:
.PHONY: help install-vm install-dom0 uninstall-vm uninstall-dom0 dist packages package-tools deb rpm \
	arch dom0-deb repo apt-repo dnf-repo demo demo-picture check check-quick check-packages check-lab \
	check-faults check-phones fuzz soak bench bench-plot errors clean

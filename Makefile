# SPDX-License-Identifier: GPL-2.0-or-later
VERSION := $(shell cat version)
REL := 1
NAME := qubes-usb-proxy-$(VERSION)
MAINTAINER := $(shell sed -n 's/^ -- \(.*\)  .*/\1/p' debian/changelog | head -n 1)
TARBALL := dist/$(NAME).tar.gz

# What whoever builds has in the environment, or in a home, would end up in what is built.
CLEAN := env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/nonexistent LC_ALL=C.UTF-8 TZ=UTC
RELEASED := $(shell sed -n 's/^ -- .*>  //p' debian/changelog | head -n 1 | $(CLEAN) date -f - +%s)
EPOCH := $(or $(SOURCE_DATE_EPOCH),$(RELEASED))
ENV := $(CLEAN) SOURCE_DATE_EPOCH=$(EPOCH)
SYSTEM := umask 022 && $(ENV)
unexport CDPATH
.NOTPARALLEL:

# The files of the project, as git or the tarball lists them; others may lie about.
FILES = $(sort $(wildcard $(or \
	$(shell $(CLEAN) git --git-dir=.git --work-tree=. ls-files 2>/dev/null), \
	$(shell cat MANIFEST 2>/dev/null))))
MODULES := $(filter usb_proxy/%.py,$(or $(FILES),$(shell find usb_proxy -name '[!.]*.py' | LC_ALL=C sort)))

# What the lab, the packages and the checks need on Debian 12 or 13; installed when it is missing.
LAB_TOOLS := build-essential debhelper dh-python qemu-system-x86 qemu-utils mmdebstrap busybox-static \
	apt-utils e2fsprogs git gpg gpg-agent python3 util-linux
PACKAGE_TOOLS := build-essential debhelper dh-python python3-all python3-setuptools python3-stdeb \
	rpm makepkg pacman-package-manager libarchive-tools fakeroot zstd apt-utils createrepo-c git \
	gpg gpg-agent
QUICK_TOOLS := python3-venv shellcheck bash-completion fish zsh
CHECK_TOOLS := $(LAB_TOOLS) $(PACKAGE_TOOLS) $(QUICK_TOOLS) devscripts lintian rpmlint systemd \
	mandoc libxml2-utils polkitd sudo dnf autopkgtest
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
LAB_SUITE ?= bookworm
AS_ROOT = $(SUDO) env PYTHONDONTWRITEBYTECODE=1 LAB_SUITE=$(LAB_SUITE)
TEST := -m pytest -p no:cacheprovider --durations 10
PYTHON := build/venv/bin/python
VENV := build/venv/ready

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

# What is installed, each as SOURCE:MODE:TARGET.
PRIVATE := /usr/lib/qubes/usb-proxy
SHARE := /usr/share
DOC := $(SHARE)/doc/qubes-usb-proxy
# Debian's zsh keeps what packages bring apart (its README.Debian).
ZSH := $(SHARE)/zsh/$(if $(wildcard /etc/debian_version),vendor-completions,site-functions)
SITE = $(shell $(CLEAN) python3 -c 'import sysconfig as s; print(s.get_path("purelib", \
	"deb_system" if "deb_system" in s.get_scheme_names() else "posix_prefix", {"base": "/usr"}))')
EGG = $(SITE)/qubes_usb_proxy_dom0-$(VERSION).egg-info
put = $(foreach file,$(3),$(file):$(1):$(2)/$(notdir $(file)))

VM = $(foreach file,programs/launch $(filter-out usb_proxy/dom0/%,$(MODULES)), \
		$(file):$(if $(filter %.py,$(file)),0644,0755):$(PRIVATE)/$(file:programs/%=%)) \
	$(call put,0755,/usr/bin,programs/qubes-usb-proxy) \
	$(call put,0755,/usr/lib/qubes,$(addprefix programs/usb-,detach-all export import reset resumed)) \
	$(call put,0755,/etc/qubes-rpc,$(addprefix qubes-rpc/qubes.USB,Attach Detach) qubes-rpc/qubes.USB) \
	qubes-rpc/qubes.USB.config:0644:/etc/qubes/rpc-config/qubes.USB \
	/usr/lib/qubes/usb-detach-all:link:/etc/qubes/suspend-pre.d/usb-detach-all.sh \
	/usr/lib/qubes/usb-resumed:link:/etc/qubes/suspend-post.d/usb-resumed.sh \
	$(call put,0440,/etc/sudoers.d,sudoers/qubes-usb-proxy) \
	$(call put,0644,/usr/lib/udev/rules.d,$(addprefix udev/80-qubes-usb-, \
		arrival.rules proxy.rules reenumerate.rules reset.rules)) \
	$(call put,0644,$(SHARE)/polkit-1/actions,polkit/org.qubes-os.usb-proxy.policy) \
	completion/bash:0644:$(SHARE)/bash-completion/completions/qubes-usb-proxy \
	completion/zsh:0644:$(ZSH)/_qubes-usb-proxy \
	completion/fish:0644:$(SHARE)/fish/vendor_completions.d/qubes-usb-proxy.fish \
	$(call put,0644,$(DOC),README.md SECURITY.md) \
	$(call put,0644,$(DOC)/docs,$(addprefix docs/,demo.svg overview.svg \
		$(addsuffix .md,comparison how-it-works phones recipes troubleshooting users))) \
	$(foreach page,qubes-usb-proxy.7 qubes-usb-proxy-errors.7 qubes-usb-proxy.8 usb-detach-all.8 \
		usb-reset.8,man/$(page):gzip:$(SHARE)/man/man$(subst .,,$(suffix $(page)))/$(page).gz)

DOM0_MODULES = $(filter usb_proxy/dom0/% usb_proxy/catalogue/% $(addprefix usb_proxy/, \
	__init__.py errors.py idents.py),$(MODULES))
DOM0 = $(call put,0644,/etc/qubes/policy.d,policy/80-usb-proxy.policy) \
	$(call put,0755,/usr/bin,programs/qvm-usb-doctor) \
	completion/qvm-usb-doctor:0644:$(SHARE)/bash-completion/completions/qvm-usb-doctor \
	man/qvm-usb-doctor.8:gzip:$(SHARE)/man/man8/qvm-usb-doctor.8.gz \
	$(foreach file,$(DOM0_MODULES),$(file):0644:$(SITE)/$(file)) \
	$(call put,0644,$(EGG),usb_proxy/dom0/entry_points.txt)

# Packages say PACKAGED=yes: theirs is byte code made where it is used, and the list of folders.
PACKAGED :=
D := '$(subst ','\'',$(DESTDIR))'
targets = $(foreach each,$(1),$(lastword $(subst :, ,$(each))))
parents = $(foreach each,$(filter-out /,$(1)),$(each) $(call parents,$(patsubst %/,%,$(dir $(each)))))
folders = $(sort $(call parents,$(foreach each,$(call targets,$(1)),$(patsubst %/,%,$(dir $(each))))))

# A table, and where its package usb_proxy lies. Beside the byte code is a list of those folders
# that were made for it; what was there of another version goes. By this name, py3clean of Debian
# takes the list away with the byte code when a package that replaced this is purged.
RECORD := usb_proxy/__pycache__/__init__.folders
define install
$(if $(MODULES),,$(error there are no modules in the folder usb_proxy))
@set -e; umask 022; made=; \
if [ -e $(D)$(2)/$(RECORD) ]; then made=$$(cat $(D)$(2)/$(RECORD)); fi; \
rm -rf $(D)$(2)/usb_proxy $(D)$(2)/qubes_usb_proxy_dom0-*.egg-info; \
for folder in $(call folders,$(1)); do \
	[ ! -d $(D)"$$folder" ] || continue; \
	made="$$made $$folder"; mode=0755; [ "$$folder" != /etc/sudoers.d ] || mode=0750; \
	install -dm "$$mode" $(D)"$$folder"; \
done; \
for each in $(1); do \
	source=$${each%%:*}; target=$${each##*:}; mode=$${each#*:}; mode=$${mode%:*}; \
	case $$mode in \
	link) ln -sfn "$$source" $(D)"$$target";; \
	gzip) rm -f $(D)"$$target"; $(ENV) gzip -9nc "$$source" > $(D)"$$target";; \
	*) install -m "$$mode" "$$source" $(D)"$$target";; \
	esac; \
done; \
[ -n "$(PACKAGED)" ] || { mkdir -p $(D)$(2)/usb_proxy/__pycache__; \
	printf '%s\n' $$made | LC_ALL=C sort -u > $(D)$(2)/$(RECORD); }
endef

# Byte code that is as old as its source, whenever that is, for the Python that runs here.
define compile
$(if $(PACKAGED),,find $(D)$(1)/usb_proxy -name '*.py' -exec touch --date=@$(EPOCH) {} +
$(SYSTEM) python3 -I -m compileall -q -f --invalidation-mode timestamp \
	$(if $(DESTDIR),-s $(D) -p /) $(D)$(1)/usb_proxy)
endef

# A table, where its usb_proxy lies and that of the other side, and folders that are its alone.
# The other side's list takes what that still uses of the folders that were made for both.
define uninstall
@cd $(D)/ 2>/dev/null || exit 0; set -e; \
made=; if [ -e .$(2)/$(RECORD) ]; then made=$$(cat .$(2)/$(RECORD)); fi; \
for target in $(call targets,$(1)); do rm -f ".$$target"; done; \
rm -rf .$(2)/usb_proxy $(addprefix .,$(4)); \
for folder in $$(printf '%s\n' $$made | LC_ALL=C sort -ru); do \
	rmdir ".$$folder" 2>/dev/null || [ ! -d ".$$folder" ] || [ ! -e .$(3)/$(RECORD) ] || \
		echo "$$folder" >> .$(3)/$(RECORD); \
done
endef

# Without our udev rule, only the kernel gives drivers to what is plugged in beside a judged device.
define open
@for gate in /run/qubes-usb-proxy/gate-usb* /run/qubes-usb-proxy/devices-usb*; do \
	switch=/sys/bus/usb/devices/$${gate##*-}/authorized_default; \
	case $$gate in */gate-*) switch=$${switch%/*}/interface_authorized_default ;; esac; \
	[ ! -e "$$gate" ] || [ ! -e "$$switch" ] || echo 1 > "$$switch"; \
	rm -f "$$gate"; \
done
endef

install-vm: ## install the program of a qube, below DESTDIR if that is set
	$(call install,$(VM),$(PRIVATE))
	rm -rf $(D)/usr/lib/qubes-usb-proxy
	$(call compile,$(PRIVATE))

install-dom0: ## install the extension of dom0, below DESTDIR if that is set
	$(call install,$(DOM0),$(SITE))
	umask 022 && printf '%s\n' 'Metadata-Version: 2.1' 'Name: qubes-usb-proxy-dom0' \
		'Version: $(VERSION)' 'License: GPL-2.0-or-later' > $(D)$(EGG)/PKG-INFO
	$(call compile,$(SITE))

uninstall-vm: ## remove what install-vm installed
	$(call uninstall,$(VM),$(PRIVATE),$(SITE),$(PRIVATE) $(DOC))
	$(if $(DESTDIR),,$(open))

uninstall-dom0: ## remove what install-dom0 installed
	$(call uninstall,$(DOM0),$(SITE),$(PRIVATE),$(SITE)/qubes_usb_proxy_dom0-*.egg-info)

# The sources in a folder of the given name, in a tarball.
define pack
$(if $(FILES),,$(error neither git nor a file MANIFEST lists the files of this folder: install git, \
	and in a folder that is no clone run: git init && git add --all))
@umask 022 && mkdir -p build dist && printf '%s\n' $(FILES) > build/MANIFEST
@$(CLEAN) tar --create --sort=name --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw,a-s \
	--mtime=@$(EPOCH) --transform='s,^,$(1)/,' --use-compress-program='gzip -9n' \
	--file $(2) $(FILES) -C build MANIFEST
endef

dist: $(TARBALL) ## the source tarball, in dist/
	@$(CLEAN) git --git-dir=.git --work-tree=. ls-files --others --exclude-standard 2>/dev/null | \
		sed 's/^/not packed, since git does not know it: /' >&2

# Each time: a file may be gone, or git may know another.
.PHONY: $(TARBALL)
$(TARBALL):
	$(call pack,$(NAME),$@)

packages: package-tools deb rpm arch dom0-deb ## all packages, in dist/

package-tools: ## install what building them needs, on Debian
	@tests/setup.sh $(PACKAGE_TOOLS)

SPECS := build/rpm_spec/qubes-usb-proxy.spec build/rpm_spec/qubes-usb-proxy-dom0.spec

# A build has a folder with the sources; its path gets into tools that know no quotes.
begin = set -e; umask 022; rm -rf build/$@; mkdir -p build/$@; room=$$(pwd -P)/build/$@; \
	case $$room in *[!A-Za-z0-9/._+-]*) \
		room=$$(mktemp -d /tmp/qubes-usb-proxy.XXXXXX); trap 'rm -rf "$$room"' EXIT;; \
	esac; chmod g-s "$$room"; $(CLEAN) tar -C "$$room" -xf $(TARBALL)

# What a build tells is of interest when it fails.
quietly = > build/$@/log 2>&1 || { cat build/$@/log; exit 1; }

lab-tools: ## install what the lab and the package of a qube need, on Debian
	@tests/setup.sh $(LAB_TOOLS)

deb: $(TARBALL) ## the Debian package of a qube
	@$(begin); \
	(cd "$$room/$(NAME)" && $(ENV) dpkg-buildpackage --build=source,all --no-sign) $(quietly); \
	cp "$$room"/*.deb "$$room"/*.dsc "$$room"/*.tar.xz dist

# The Python of dom0 in the current release, on whatever this is built.
DOM0_PYTHON := 3.13

rpm: $(TARBALL) $(SPECS) ## the rpm packages of a qube and of dom0, there for DOM0_PYTHON
	@$(begin); cp $(TARBALL) "$$room"; \
	$(ENV) rpmbuild -bb $(if $(wildcard /etc/debian_version),--nodeps) \
		--define "_topdir $$room" --define "_sourcedir $$room" --define '_buildhost localhost' \
		--define 'use_source_date_epoch_as_buildtime 1' \
		--define 'clamp_mtime_to_source_date_epoch 1' \
		--define 'python3_sitelib /usr/lib/python$(DOM0_PYTHON)/site-packages' \
		$(SPECS) $(quietly); \
	cp "$$room"/RPMS/noarch/*.rpm dist

# makepkg refuses to run as root, and notes where it runs: that is always the same folder.
arch: build/archlinux/PKGBUILD $(TARBALL) ## the Arch Linux package of a qube
	$(call pack,$(NAME)-$(REL),build/$(NAME)-$(REL).tar.gz)
	@set -e; umask 022; rm -rf build/arch; mkdir -p build/arch; \
	room=/tmp/qubes-usb-proxy-makepkg; mkdir -m 0700 $$room || \
		{ echo "another build is under way, or left $$room: remove it" >&2; exit 1; }; \
	trap 'rm -rf $$room' EXIT; trap 'exit 1' HUP INT TERM; \
	mkdir $$room/archlinux; cp archlinux/PKGBUILD.install $$room/archlinux; \
	cp $< build/$(NAME)-$(REL).tar.gz $$room; as=; \
	[ "$$(id -u)" != 0 ] || { chown -R 65534:65534 $$room; \
		as='setpriv --reuid=65534 --regid=65534 --clear-groups'; }; \
	(cd $$room && $$as $(ENV) HOME=$$room PKGEXT=.pkg.tar.zst makepkg --nodeps) $(quietly); \
	cp $$room/*.pkg.tar.zst dist

dom0-deb: $(TARBALL) ## the Debian package of dom0
	@$(begin); \
	(cd "$$room/$(NAME)" && $(ENV) python3 setup.py --command-packages=stdeb.command \
		sdist_dsc --compat 13 bdist_deb) $(quietly); \
	cp "$$room/$(NAME)"/deb_dist/*.deb dist

build/changes: version debian/changelog
	mkdir -p build
	$(CLEAN) date -d @$(RELEASED) '+* %a %b %d %Y $(MAINTAINER) - $(VERSION)-$(REL)' > $@
	sed -n 's/^  \* /- /p; s/^    /  /p; /^ -- /q' debian/changelog >> $@

build/%: %.in build/changes
	mkdir -p $(@D)
	sed -e 's/@VERSION@/$(VERSION)/' -e 's/@REL@/$(REL)/' -e '/@CHANGELOG@/{r build/changes' \
		-e 'd}' $< > $@

# For users of REPO at URL, signed with the user's key KEY or, without, a throw-away key in GNUPG.
DIST := dist
REPO := dist/repo
space := $(subst ,, )
URL := file://$(subst %,%25,$(CURDIR))/dist/repo
ADDRESS = '$(subst ','\'',$(subst $(space),%20,$(URL)))'
GNUPG := build/gnupg
SIGN = gpg --batch --yes --quiet $(if $(KEY),--local-user '$(KEY)',--homedir '$(GNUPG)') --armor
END_SIGN = $(if $(KEY),,gpgconf --homedir '$(GNUPG)' --kill gpg-agent)
NEED_KEY = $(if $(KEY),,[ -d '$(GNUPG)' ] || { mkdir -p -m 0700 '$(GNUPG)' && { gpg --homedir '$(GNUPG)' \
	--batch --quiet --passphrase '' --quick-generate-key 'qubes-usb-proxy, throw-away' ed25519 sign never \
	|| { rm -rf '$(GNUPG)'; false; }; }; })
PUBLIC_KEY = '$(REPO)/qubes-usb-proxy.asc'
# apt and web servers read it as a user of their own.
END_REPO = chmod -R u=rwX,go=rX '$(REPO)'

repo: apt-repo dnf-repo ## repositories for apt and dnf of what is in dist/, see Makefile

apt-repo: ## the one for apt alone
	@$(NEED_KEY)
	rm -rf '$(REPO)/apt'
	mkdir -p '$(REPO)/apt'
	cp '$(DIST)'/*.deb '$(REPO)/apt'
	cd '$(REPO)/apt' && apt-ftparchive packages . > Packages
	cd '$(REPO)/apt' && apt-ftparchive release . > ../Release
	mv '$(REPO)/Release' '$(REPO)/apt'
	$(SIGN) --output '$(REPO)/apt/InRelease' --clear-sign '$(REPO)/apt/Release'
	$(SIGN) --output $(PUBLIC_KEY) --export $(if $(KEY),'$(KEY)')
	printf 'deb [signed-by=/etc/apt/keyrings/qubes-usb-proxy.asc] %s/apt ./\n' $(ADDRESS) \
		> '$(REPO)/qubes-usb-proxy.list'
	$(END_REPO)
	$(END_SIGN)

dnf-repo: ## the one for dnf alone, its packages signed, too, as dom0 wants
	@$(NEED_KEY)
	rm -rf '$(REPO)/dnf'
	mkdir -p '$(REPO)/dnf'
	cp '$(DIST)'/*.rpm '$(REPO)/dnf'
	rpmsign --define '__gpg $(shell command -v gpg)' --define '_gpg_name $(or $(KEY),throw-away)' \
		$(if $(KEY),,--define '_gpg_path $(GNUPG)') --addsign '$(REPO)'/dnf/*.rpm > /dev/null
	createrepo_c --quiet --no-database '$(REPO)/dnf'
	$(SIGN) --detach-sign '$(REPO)/dnf/repodata/repomd.xml'
	$(SIGN) --output $(PUBLIC_KEY) --export $(if $(KEY),'$(KEY)')
	printf '[qubes-usb-proxy]\nname=qubes-usb-proxy\nbaseurl=%s/dnf\ngpgcheck=1\n' $(ADDRESS) \
		> '$(REPO)/qubes-usb-proxy.repo'
	printf 'repo_gpgcheck=1\ngpgkey=%s/qubes-usb-proxy.asc\n' $(ADDRESS) \
		>> '$(REPO)/qubes-usb-proxy.repo'
	$(END_REPO)
	$(END_SIGN)

demo: lab-tools ## carry a USB stick from one virtual machine to another, and back
	@echo "building the package"
	@$(MAKE) --silent deb
	@$(AS_ROOT) /usr/bin/python3 tests/lab/demo.py

demo-picture: ## make demo, and draw what it prints: docs/demo.svg
	/usr/bin/python3 -m tests.docs.picture

# What needs no guest waits for disks and mirrors most of the time: it runs at once, and is shown as
# it ends. The lab then has the machine for itself.
check: $(VENV) dist ## all tests, in the lab too, but for the longest
	@tests/setup.sh $(sort $(CHECK_TOOLS))
	@printf '%s\n' quick packages matrix | xargs -P 3 -I {} sh -c \
		'$(MAKE) check-{} > build/check-{}.log 2>&1; code=$$?; cat build/check-{}.log; exit $$code'
	@$(MAKE) check-lab LONG='-m "not long"'

# Where others have work for the processors, too, a deadline may pass for that alone: what fails beside
# them is told, and run again by itself.
define beside
$(2) $(PYTHON) -m pytest -o cache_dir=build/failed$(3) $(1) --cache-clear --durations 20 || \
$(2) $(PYTHON) -m pytest -o cache_dir=build/failed$(3) $(1) -n 0 \
	--last-failed --last-failed-no-failures none
endef

check-quick: $(VENV) ## the tests that need no guest
	$(call beside,-n 3 --dist worksteal tests/unit tests/dom0 tests/static tests/fuzz tests/docs,,-quick)

check-packages: $(VENV) ## the tests of all packages: as root, for their installation
	@tests/setup.sh $(sort $(CHECK_TOOLS))
	$(call beside,tests/packaging,$(AS_ROOT),-packages)

SUITE :=
check-matrix: $(VENV) dist ## all packages on Debian 12 and 13, Python 3.14; SUITE=trixie alone
	@tests/setup.sh mmdebstrap util-linux
	$(call beside,-n 3 --dist worksteal tests/matrix,$(AS_ROOT) SUITE=$(SUITE),-matrix)

PARTS := BUILDER CORE_ADMIN QREXEC CORE_ADMIN_CLIENT PLATFORM
check-real: $(VENV) dist $(if $(CORE_ADMIN_CLIENT),deb) ## with others' real parts, where given: BUILDER=DIR and more, see CONTRIBUTING.md
	@tests/setup.sh $(LAB_TOOLS)
	$(AS_ROOT) $(foreach part,$(PARTS),$(part)='$($(part))') \
		$(PYTHON) $(TEST) tests/real

# The tests of one lab wait half of their time: so three at once, for two processors.
LABS := -n 3 --dist loadfile
LONG :=
check-lab: $(VENV) lab-tools deb ## the tests in the lab, with a short part of those of faults and phones
	$(call beside,$(LABS) $(LONG) tests/lab tests/integration tests/bench,$(AS_ROOT))
	$(call beside,$(LABS) -m short tests/faults tests/phones,$(AS_ROOT))

lab: $(VENV) lab-tools deb ## both guests and a Python prompt; tests in CASES, stopped where one fails
	$(AS_ROOT) $(PYTHON) $(if $(CASES),$(TEST) --pdb $(CASES),-m tests.lab.shell dist)

HOLDS := 1
check-faults: $(VENV) lab-tools deb ## all tests of faults, or those in CASES, HOLDS times; goes on after a stop
	@for holds in $$(seq $(HOLDS)); do \
		$(AS_ROOT) HOLDS=$$holds $(PYTHON) $(TEST) -n 3 --dist worksteal \
			$(or $(CASES),tests/faults) || failed=1; \
	done; [ -z "$$failed" ]

check-phones: $(VENV) lab-tools deb ## all tests with a device that leaves the bus, in the lab: half an hour
	$(AS_ROOT) $(PYTHON) $(TEST) tests/phones

steps: $(VENV) lab-tools deb ## record the steps of each program, at which the tests of faults strike
	$(AS_ROOT) RECORD=1 $(PYTHON) $(TEST) -k recording tests/faults/test_death.py tests/phones/test_death.py

$(VENV): tests/requirements.txt
	@tests/setup.sh $(QUICK_TOOLS)
	rm -rf build/venv
	/usr/bin/python3 -m venv build/venv
	$(PYTHON) -m pip install --quiet --requirement tests/requirements.txt
	@touch $@

SECONDS := 60
fuzz: $(VENV) ## fuzz each parser for SECONDS, or those in TARGETS; finds go to build/fuzz
	$(PYTHON) -m tests.fuzz --all $(SECONDS) $(TARGETS)

HOURS := 1
soak: $(VENV) lab-tools deb ## HOURS of random cycles in the lab, or CYCLES of them; SEED= repeats a run
	$(AS_ROOT) $(PYTHON) -m tests.soak --hours $(HOURS) \
		$(addprefix --cycles ,$(CYCLES)) $(addprefix --seed ,$(SEED)) $(addprefix --first ,$(FIRST))

BENCH = $(AS_ROOT) PLATFORM='$(PLATFORM)' $(PYTHON) -m tests.bench
RUNS := 10
CASES :=

bench: $(VENV) ## what an attach costs, in virtual time: docs/performance.md
	@tests/setup.sh $(LAB_TOOLS) hwdata
	$(BENCH) --runs $(RUNS) $(if $(REFERENCE),--reference $(REFERENCE)) $(CASES)

bench-plot: $(VENV) lab-tools ## where the time of an attach goes: docs/attach.svg
	$(BENCH).plot

errors: ## write docs/troubleshooting.md and its man page from usb_proxy/catalogue
	/usr/bin/python3 -m tests.docs.catalogue

release-check: ## what of the release checklist in CONTRIBUTING.md a program can do
	@/usr/bin/python3 -I tests/release.py

clean: ## remove what was built, also what checks have left as root
	rm -rf build dist 2>/dev/null || $(SUDO) rm -rf build dist

.DELETE_ON_ERROR:
.PHONY: help install-vm install-dom0 uninstall-vm uninstall-dom0 dist packages package-tools deb rpm \
	arch dom0-deb repo apt-repo dnf-repo lab-tools demo demo-picture check check-quick check-packages \
	check-lab check-matrix check-real check-faults check-phones lab steps fuzz soak bench bench-plot errors \
	clean release-check

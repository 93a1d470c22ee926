# What there is to do with this project; 'make help' lists it. Needs cargo, and npm for the real codex.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

# Where 'install' puts the program (PREFIX, else ~/.local), and the daemon's profile that 'install-plugin' puts the
# plugin into (PROFILE, else ~/.plexum). The shell gets them as they were written and quotes them: make would expand
# a dollar sign in them and divide them at spaces.
HERE := $(CURDIR)
GIVEN_PREFIX := $(if $(filter undefined,$(origin PREFIX)),~/.local,$(value PREFIX))
GIVEN_PROFILE := $(if $(filter undefined,$(origin PROFILE)),~/.plexum,$(value PROFILE))
GIVEN_DESTDIR := $(value DESTDIR)
# Another program, given on the command line, is installed as it is.
GIVEN_PROGRAM := $(if $(filter command,$(origin PROGRAM)),$(value PROGRAM),target/release/plexum-openai)
BUILD := $(if $(filter command,$(origin PROGRAM)),,build)
PAGES := $(notdir $(wildcard man/*.[1-8]))
# make would expand them for the environment.
unexport PREFIX PROFILE DESTDIR PROGRAM
export HERE GIVEN_PREFIX GIVEN_PROFILE GIVEN_DESTDIR GIVEN_PROGRAM

# What every target that installs or removes begins with: 'prefix', 'profile', 'destdir' and 'program' as absolute
# paths. Only some shells expand the tilde of 'make install PREFIX=~/.local'.
define PATHS
set_path() { # NAME VARIABLE VALUE
    local path=$$3
    case $$path in
    *'$$'* | *[[:cntrl:]]*)
        printf '%s has a dollar sign or a control character in it: write the directory out\n' "$$1" >&2
        exit 1
        ;;
    esac
    case $$path in
    '~') path=$$HOME ;;
    '~/'*) path=$$HOME/$${path#'~/'} ;;
    esac
    case $$path in
    /*) ;;
    ?*) path=$$HERE/$$path ;;
    '') if [ "$$1" != DESTDIR ]; then echo "$$1 is empty" >&2; exit 1; fi ;;
    esac
    printf -v "$$2" '%s' "$$path"
}
set_path PREFIX prefix "$$GIVEN_PREFIX"
set_path PROFILE profile "$$GIVEN_PROFILE"
set_path DESTDIR destdir "$$GIVEN_DESTDIR"
set_path PROGRAM program "$$GIVEN_PROGRAM"
plugin_directory=$$destdir$$profile/plugins/$(PLUGIN)
shell_word() { printf '%q' "$$1"; }
# Nobody else may change what is run from here, whatever the umask.
umask go-w
endef

PLUGIN := plexum-openai-provider

# The versions of codex that the tests run: the oldest that is supported, those that changed something that
# matters here (0.148 the thread's index, 0.155 the shape of outputs), and the newest that was tried.
CODEX_VERSIONS := 0.135.0 0.148.0 0.155.0 0.169.0
CODEX_NEWEST := $(lastword $(CODEX_VERSIONS))

.PHONY: help build demo bench test lint check compat soak fuzz codex codex-newest mcp-clients
.PHONY: install uninstall install-plugin uninstall-plugin

## build: the program, optimised, as target/release/plexum-openai (the default)
build:
	cargo build --release --locked

## demo: two turns of one conversation with the real codex and a model on loopback; no account
demo: codex-newest
	@codex=(target/codex/$(CODEX_NEWEST)/node_modules/@openai/codex-*/vendor/*/bin/codex)
	[ -x "$${codex[0]}" ] || { echo "The demo runs the real codex, and there is none." >&2; exit 1; }
	echo "building plexum-openai"
	cargo build --quiet --release --locked --bin plexum-openai --example loopback-model
	tests/demo/run target/release "$${codex[0]}"

# Most tests wait most of the time: for grace periods, for codex, for a limit to pass. With one test a core, as cargo
# has it, cores are idle meanwhile; with more than two a core, limits of a few seconds are missed.
## test: all tests, on every version of codex that is supported
test: export RUST_TEST_THREADS ?= $(shell echo $$(( $$(nproc) * 2 )))
test: codex mcp-clients
	cargo test --locked

## bench: speed and memory beside wc, jq, serde_json, cp and the bare codex; takes some minutes
bench: codex-newest
	@cargo build --quiet --release --locked --bin plexum-openai --examples
	PLEXUM_BENCH_CODEX="$$(echo target/codex/$(CODEX_NEWEST)/node_modules/@openai/codex-*/vendor/*/bin/codex)" \
	    cargo bench --quiet --locked --bench ratios

## lint: format, lints, docs, man pages, system calls and dependencies, without the tests
lint:
	@run() { echo "$$*"; "$$@"; }
	run cargo fmt --check
	CLIPPY_CONF_DIR=.ci run cargo clippy --quiet --locked --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings run cargo doc --quiet --locked --document-private-items --no-deps
	echo "man pages"
	if command -v mandoc >/dev/null; then
	    mandoc -T lint -W warning $(addprefix man/,$(PAGES))
	else
	    echo "SKIPPED: mandoc is not installed, the man pages were not linted" >&2
	    [ "$${CI:-}" != true ]
	fi
	echo "system calls"
	if grep -rnE '\b(rustix|nix|signal_hook|libc)::' src --include='*.rs' | grep -v '^src/os/'; then
	    echo "These crates are called in src/os alone: give it a function for this." >&2
	    exit 1
	fi
	echo "dependencies"
	.ci/audit

# One after the other, also with -j: the output of both together is of use to nobody. No recipe calls make, since
# 'make -n' runs such a recipe, whole.
## check: what has to be right before a commit: lint, then test
check: lint test
.NOTPARALLEL: check

## compat: one conversation of every stage on other releases of codex: VERSIONS="0.150.1 0.166.0", else every fifth
compat:
	@KEEP="$(CODEX_VERSIONS)" tests/compat/run $(VERSIONS)

## soak: a thousand turns (TURNS) that go well and wrong, 32 at once, after which nothing may be left
soak:
	SOAK=$(or $(TURNS),1000) cargo test --locked --test it -- soak::

## fuzz: every parser against whatever bytes, for TIME seconds (60) each; needs 'cargo install cargo-fuzz'
FUZZ := $(notdir $(basename $(wildcard tests/fuzz/targets/*.rs)))
fuzz:
	@command -v cargo-fuzz >/dev/null || { echo "cargo-fuzz is missing: cargo install cargo-fuzz" >&2; exit 1; }
	# No sanitizer: there is no unsafe code to be watched, and so the stable toolchain will do.
	cargo fuzz build --fuzz-dir tests/fuzz -s none
	for target in $(FUZZ); do
	    # What is found goes into the first directory; the second one is part of the repository and stays small.
	    mkdir -p "tests/fuzz/target/corpus/$$target"
	    echo "fuzzing $$target"
	    cargo fuzz run --fuzz-dir tests/fuzz -s none "$$target" \
	        "tests/fuzz/target/corpus/$$target" "tests/fuzz/corpus/$$target" -- \
	        -max_total_time=$(or $(TIME),60) -timeout=10 -max_len=16384 -dict=tests/fuzz/words.dict -verbosity=0
	done

## codex: the real codex in every supported version, by npm, into target/codex
codex: $(CODEX_VERSIONS:%=target/codex/%)
codex-newest: target/codex/$(CODEX_NEWEST)

# Fetched beside its place and then moved there, so that what is there is whole. The empty package makes the directory
# npm's own place: with --prefix npm would pass over the machine's npmrc, and with it its proxy and certificates.
target/codex/%:
	@rm -rf "$@.part"
	mkdir -p "$@.part"
	echo '{}' > "$@.part/package.json"
	echo "fetching codex $*"
	if (cd "$@.part" && npm install --loglevel=error --no-audit --no-fund --fetch-retries=1 --fetch-retry-mintimeout=1000 \
	    "@openai/codex@$*") >"$@.log" 2>&1; then
	    mv "$@.part" "$@"
	    rm -f "$@.log"
	else
	    rm -rf "$@.part"
	    echo "NOT FETCHED: codex $*, by npm install @openai/codex@$*; what needs it is skipped. npm said:" >&2
	    grep -vE 'error (code|errno|syscall|type) |complete log' "$@.log" | head -n 2 >&2 || true
	    [ "$${CI:-}" != true ]
	fi

## mcp-clients: the official MCP clients, by pip and npm, into target/mcp-clients
mcp-clients:
	@tests/mcp/install target/mcp-clients

## install: program, man pages and shell completions below PREFIX (~/.local)
install: $(BUILD)
	@$(PATHS)
	install -D -m 755 "$$program" "$$destdir$$prefix/bin/plexum-openai"
	for page in $(PAGES); do
	    install -D -m 644 "man/$$page" "$$destdir$$prefix/share/man/man$${page##*.}/$$page"
	done
	share=$$destdir$$prefix/share
	completions() {
	    mkdir -p "$$(dirname "$$2")"
	    "$$program" completions "$$1" > "$$2"
	}
	completions bash "$$share/bash-completion/completions/plexum-openai"
	completions zsh "$$share/zsh/site-functions/_plexum-openai"
	completions fish "$$share/fish/vendor_completions.d/plexum-openai.fish"
	echo "Installed $$(shell_word "$$destdir$$prefix/bin/plexum-openai"), its man pages and completions."
	case ":$$PATH:" in
	    *":$$prefix/bin:"*) ;;
	    *) echo "$$(shell_word "$$prefix/bin") is not in your PATH: add it to call plexum-openai by its name." ;;
	esac
	case $$prefix in
	    /usr | /usr/local) ;;
	    *) echo "zsh finds the completions with this before its compinit: fpath=($$(shell_word "$$prefix/share/zsh/site-functions") \$$fpath)" ;;
	esac

## uninstall: removes what 'install' installed
uninstall:
	@$(PATHS)
	rm -f "$$destdir$$prefix/bin/plexum-openai"
	for page in $(PAGES); do
	    rm -f "$$destdir$$prefix/share/man/man$${page##*.}/$$page"
	done
	share=$$destdir$$prefix/share
	rm -f "$$share/bash-completion/completions/plexum-openai" \
	    "$$share/zsh/site-functions/_plexum-openai" \
	    "$$share/fish/vendor_completions.d/plexum-openai.fish"
	echo "Removed plexum-openai from $$(shell_word "$$destdir$$prefix")."

## install-plugin: the plugin into the daemon's profile PROFILE (~/.plexum)
install-plugin: $(BUILD)
	@$(PATHS)
	plugin=$$plugin_directory/plexum-openai-provider-plugin
	config=$$plugin_directory/config.json
	install -D -m 755 "$$program" "$$plugin"
	PLEXUM_PROFILE_ROOT=$$destdir$$profile "$$program" manifest > "$$plugin_directory/manifest.json"
	echo "Installed the plugin into $$(shell_word "$$plugin_directory")."
	# It can name any program and hold keys: readable by its owner alone, and never written through a link.
	write_config() { (umask 077; set -o noclobber; cat > "$$config"); }
	# An empty one may be from when there was no codex to be found.
	is_empty() { [ -f "$$config" ] && [ ! -L "$$config" ] && [ "$$(head -c 64 "$$config" | tr -d '[:space:]')" = '{}' ]; }
	if [ -e "$$config" ] && ! is_empty; then
	    echo "Its config.json was there already and is as it was."
	else
	    codex=$$(command -v codex || true)
	    # npm's codex is a script for node; the program that it starts is in a package of npm's below or beside the
	    # script's own and needs no node. Nowhere else: a 'bin' of many users has neighbours of anybody's making.
	    script=$$(readlink -f -- "$${codex:-/}" || true)
	    case $$script in
	    */node_modules/@openai/codex/bin/codex.js)
	        package=$${script%/bin/codex.js}
	        for native in "$$package"/node_modules/@openai/codex-linux-*/vendor/*/bin/codex \
	            "$${package%/*}"/codex-linux-*/vendor/*/bin/codex "$$package"/vendor/*/bin/codex; do
	            if [ -x "$$native" ]; then codex=$$(readlink -f -- "$$native"); break; fi
	        done
	        ;;
	    esac
	    case $$codex in
	    *[[:cntrl:]]*) codex= ;;
	    esac
	    case $$codex in
	    /*)
	        escaped=$$(printf '%s' "$$codex" | sed 's/[\\"]/\\&/g')
	        rm -f "$$config"
	        printf '{\n  "binary": "%s"\n}\n' "$$escaped" | write_config
	        echo "Its config.json says that codex is $$(shell_word "$$codex")."
	        ;;
	    *)
	        [ -e "$$config" ] || printf '{\n}\n' | write_config
	        echo "codex is not in your PATH: the doctor below says what to do about that."
	        ;;
	    esac
	fi
	doctor="$$(shell_word "$$plugin") doctor"
	[ "$$profile" = "$$HOME/.plexum" ] || doctor="PLEXUM_PROFILE_ROOT=$$(shell_word "$$profile") $$doctor"
	printf '%s\n' '' 'What remains to do:' \
	    '  1. See whether a turn has what it needs:' \
	    "       $$doctor" \
	    '  2. Allow the plugin: add "$(PLUGIN)" to .plugins.allow in the config of the daemon.' \
	    '  3. Make an agent that uses it: plexum agent-add --model codex my-agent' \
	    '  4. Restart the daemon.'

## uninstall-plugin: removes the plugin from PROFILE, but not its config.json
uninstall-plugin:
	@$(PATHS)
	rm -f "$$plugin_directory"/{plexum-openai-provider-plugin,manifest.json,workspaces}
	if [ -e "$$plugin_directory/config.json" ]; then
	    echo "Removed the plugin; its config.json is still in $$(shell_word "$$plugin_directory")."
	else
	    rmdir "$$plugin_directory" 2>/dev/null || true
	    echo "Removed the plugin from $$(shell_word "$$destdir$$profile")."
	fi
	echo "Take \"$(PLUGIN)\" out of .plugins.allow in the daemon's config and restart the daemon."

## help: this list
help:
	@sed -n 's/^## /  make /p' Makefile

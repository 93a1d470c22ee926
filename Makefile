# Targets for building, testing and installing; 'make help' lists them. Needs cargo, and npm for the real codex.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

# The prefix of 'install' (PREFIX, default ~/.local) and the daemon's profile for 'install-plugin' (PROFILE, default
# ~/.plexum). They are passed to the shell unexpanded and quoted there: make would expand a dollar sign and split at
# spaces.
HERE := $(CURDIR)
GIVEN_PREFIX := $(if $(filter undefined,$(origin PREFIX)),~/.local,$(value PREFIX))
GIVEN_PROFILE := $(if $(filter undefined,$(origin PROFILE)),~/.plexum,$(value PROFILE))
GIVEN_DESTDIR := $(value DESTDIR)
# PROGRAM on the command line is installed without a build.
GIVEN_PROGRAM := $(if $(filter command,$(origin PROGRAM)),$(value PROGRAM),target/release/plexum-openai)
BUILD := $(if $(filter command,$(origin PROGRAM)),,build)
PAGES := $(notdir $(wildcard man/*.[1-8]))
# make would expand them when it exports them.
unexport PREFIX PROFILE DESTDIR PROGRAM
export HERE GIVEN_PREFIX GIVEN_PROFILE GIVEN_DESTDIR GIVEN_PROGRAM

# The beginning of each install and uninstall recipe: sets 'prefix', 'profile', 'destdir' and 'program' to absolute
# paths. The tilde in 'make install PREFIX=~/.local' is expanded here, since only some shells do so.
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
# Other users must not be able to change the installed programs, even if the umask allows it.
umask go-w
endef

PLUGIN := plexum-openai-provider

# The versions of codex that the tests run: the oldest supported one, those with relevant changes (0.148: the index of
# threads, 0.155: the shape of outputs), and the newest one tried.
CODEX_VERSIONS := 0.135.0 0.148.0 0.155.0 0.169.0
CODEX_NEWEST := $(lastword $(CODEX_VERSIONS))

.PHONY: help build demo bench test lint check compat soak fuzz codex codex-newest mcp-clients
.PHONY: install uninstall install-plugin uninstall-plugin

## build: the program, optimised, as target/release/plexum-openai (the default)
build:
	cargo build --release --locked

## demo: three turns of one conversation with the real codex and a model on loopback; no account
demo: codex-newest
	@codex=(target/codex/$(CODEX_NEWEST)/node_modules/@openai/codex-*/vendor/*/bin/codex)
	[ -x "$${codex[0]}" ] || { echo "The demo runs the real codex, and there is none." >&2; exit 1; }
	echo "building plexum-openai"
	cargo build --quiet --release --locked --bin plexum-openai --example loopback-model
	tests/demo/run target/release "$${codex[0]}"

# Most tests mostly wait: for grace periods, codex or timeouts. cargo's default of one test per core leaves cores idle;
# with more than two per core, limits of a few seconds are exceeded.
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

# Sequential even with -j: interleaved output is unreadable. No recipe calls make, since 'make -n' would execute the
# whole recipe.
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
	# No sanitizer: there is no unsafe code, and sanitizers need the nightly toolchain.
	cargo fuzz build --fuzz-dir tests/fuzz -s none
	for target in $(FUZZ); do
	    # New inputs are written to the first directory; the second one is the small corpus in the repository.
	    mkdir -p "tests/fuzz/target/corpus/$$target"
	    echo "fuzzing $$target"
	    cargo fuzz run --fuzz-dir tests/fuzz -s none "$$target" \
	        "tests/fuzz/target/corpus/$$target" "tests/fuzz/corpus/$$target" -- \
	        -max_total_time=$(or $(TIME),60) -timeout=10 -max_len=16384 -dict=tests/fuzz/words.dict -verbosity=0
	done

## codex: the real codex in every supported version, by npm, into target/codex
codex: $(CODEX_VERSIONS:%=target/codex/%)
codex-newest: target/codex/$(CODEX_NEWEST)

# Installed into a temporary directory and then renamed, so that the target is complete. The empty package.json makes
# the directory an npm project: with --prefix npm would ignore the machine's npmrc, with its proxy and certificates.
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
	# The config can name any program and contain keys: readable only by its owner, and not written through a link.
	write_config() { (umask 077; set -o noclobber; cat > "$$config"); }
	# An empty config may come from an installation that did not find codex.
	is_empty() { [ -f "$$config" ] && [ ! -L "$$config" ] && [ "$$(head -c 64 "$$config" | tr -d '[:space:]')" = '{}' ]; }
	if [ -e "$$config" ] && ! is_empty; then
	    echo "Its config.json was there already and is as it was."
	else
	    codex=$$(command -v codex || true)
	    # npm's codex is a node script; the native program that it starts needs no node and is in an npm package below
	    # or next to the script's package. Other directories are not searched: a shared 'bin' can have other users' files.
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

package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"strings"
	"testing"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
)

func TestBadFlags(t *testing.T) {
	tls := "--tls-cert c --tls-key k "
	doors := tls + "--listen :1 --client-ca ca --agent-listen :2 --agent-ca ca "
	for args, want := range map[string]string{
		"--foo":                                             "not defined: --foo",
		"--agent-listen":                                    "needs an argument: --agent-listen",
		"extra":                                             `unexpected argument "extra"`,
		"--drain-timeout soon":                              `invalid value "soon" for flag --drain-timeout`,
		"--listen x":                                        `--listen "x": want host:port`,
		"--listen :99999":                                   `--listen ":99999": want host:port`,
		"--listen unix:/p":                                  `--listen "unix:/p": want unix:PATH=CLUSTER: no =CLUSTER`,
		"--listen unix:p=a":                                 "not absolute",
		"--listen unix:@p=a":                                "not absolute",
		"--listen unix:/p=":                                 "want unix:PATH=CLUSTER",
		"--listen unix:=a":                                  "nothing before =CLUSTER",
		"--listen unix:/p=*":                                "want unix:PATH=CLUSTER",
		"--dial-agent h:1":                                  `--dial-agent "h:1": want ADDR=CLUSTER`,
		"--dial-agent h=a":                                  "want ADDR=CLUSTER: want host:port",
		"--client-ca *=f":                                   `--client-ca "*=f": want [CLUSTER=]FILE`,
		"--agent-ca a=":                                     "no file",
		"--peer=":                                           `--peer "": it is empty`,
		"--log-level loud":                                  `--log-level "loud": want debug, info`,
		doors + "--log-format xml":                          `--log-format "xml": want text or json`,
		doors + "--cluster-from host":                       `--cluster-from "host": want client-cert`,
		doors + "--cluster-from header:":                    "want client-cert",
		doors + "--cluster-from header:a\x00b":              "want client-cert",
		doors + "--admin-listen x":                          `--admin-listen "x": want host:port`,
		tls + "--agent-listen :2 --agent-ca ca":             "--listen is missing",
		tls + "--listen :1 --client-ca ca":                  "--agent-listen or --dial-agent is missing",
		tls + "--listen :1 --agent-listen :2":               "--listen host:port needs --client-ca",
		tls + "--listen unix:/p=a --client-ca f":            "--client-ca is for --listen host:port",
		tls + "--listen unix:/p=a --agent-listen :2":        "needs --agent-ca or --agent-tokens",
		tls + "--listen unix:/p=a --cluster-from sni":       "--cluster-from is for --listen host:port",
		tls + "--listen unix:/p=a --dial-agent h:1=a":       "--dial-agent needs --agent-ca",
		tls + "--listen unix:/p=a --agent-listen x":         `--agent-listen "x": want host:port`,
		"--listen :1 --client-ca ca":                        "--listen host:port needs --tls-cert and --tls-key",
		"--listen unix:/p=a --agent-listen :2 --agent-ca f": "--agent-listen needs --tls-cert and --tls-key",
		"--listen unix:/p=a --dial-agent h:1=a":             "--dial-agent needs --tls-cert and --tls-key",
		"--listen :1 --tls-cert f":                          "--tls-cert needs --tls-key",
		"--listen :1 --tls-key f":                           "--tls-key needs --tls-cert",
		"--listen unix:/p=a --agent-tokens f":               "--agent-tokens is for --agent-listen",
	} {
		var out bytes.Buffer
		err := run(context.Background(), strings.Fields(args), &out, &out)
		var usage *cli.UsageError
		if !errors.As(err, &usage) || strings.Count(err.Error(), want) != 1 {
			t.Errorf("%s: %v, want one %q", args, err, want)
		}
		if out.Len() > 0 {
			t.Errorf("%s: wrote %q", args, &out)
		}
	}
}

// TestBadFiles is about what is wrong with files, which is no usage error.
func TestBadFiles(t *testing.T) {
	args := "--tls-cert /none/c --tls-key /none/k --listen :0 --client-ca /none/1 --agent-listen :0 --agent-ca /none/2 --agent-tokens /none/3"
	err := run(context.Background(), strings.Fields(args), &bytes.Buffer{}, &bytes.Buffer{})
	var usage *cli.UsageError
	if err == nil || errors.As(err, &usage) {
		t.Fatalf("got %v", err)
	}
	for _, file := range []string{"/none/c", "/none/1", "/none/2", "/none/3"} {
		if !strings.Contains(err.Error(), file) {
			t.Errorf("nothing about %s in %v", file, err)
		}
	}
}

func TestHelp(t *testing.T) {
	var out, logs bytes.Buffer
	if err := run(context.Background(), []string{"-h"}, &out, &logs); !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	for _, want := range []string{
		"proxy-server is the seed's end", "kube-apiserver ── CONNECT ──►", "proxy-server --tls-cert tls.crt",
		"--listen ADDR\n", "--dial-agent ADDR=CLUSTER", "(default client-cert)", "(default 25s)", "--admin-listen ADDR", "(repeatable)",
	} {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), strings.Join(strings.Fields(want), " ")) {
			t.Errorf("the help has no %q", want)
		}
	}
	for line := range strings.Lines(out.String()) {
		if len([]rune(line)) > 93 {
			t.Errorf("a long line: %s", line)
		}
	}
	if logs.Len() > 0 {
		t.Errorf("standard error: %s", &logs)
	}
}

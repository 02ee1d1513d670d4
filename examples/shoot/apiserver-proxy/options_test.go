package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
)

func TestBadFlags(t *testing.T) {
	good := "--listen-address 127.0.0.1 --entrypoint h:1 "
	for args, want := range map[string]string{
		"--foo":                               "not defined: --foo",
		"extra":                               `unexpected argument "extra"`,
		"--entrypoint h:1":                    "--listen-address is missing",
		"--listen-address 127.0.0.1":          "--entrypoint is missing",
		good + "--entrypoint h":               `--entrypoint "h": want host:port`,
		good + "--listen-address h:443":       `--listen-address "h:443": want one IP`,
		good + "--listen-address 0.0.0.0":     `--listen-address "0.0.0.0": want one IP`,
		good + "--listen-address [::]:443":    `--listen-address "[::]:443": want one IP`,
		good + "--listen-address :443":        `--listen-address ":443": want one IP`,
		good + "--listen-address 240.0.0.1:0": `--listen-address "240.0.0.1:0": port 0 is none`,
		good + "--interface e0 --listen-address [64:ff9b:1::1]:0": `--listen-address "[64:ff9b:1::1]:0": port 0 is none`,
		good + "--destination 10.0.0.1":                           `--destination "10.0.0.1": want IP:PORT`,
		good + "--destination 10.0.0.1:0":                         `--destination "10.0.0.1:0": want IP:PORT`,
		good + "--dialect http":                                   `--dialect "http": want proxy or connect`,
		good + "--dialect connect":                                "--dialect connect needs --header",
		good + "--header a:b":                                     "--header needs --dialect connect",
		good + "--header x":                                       "want 'Name: value'",
		good + "--admin-listen x":                                 `--admin-listen "x": want host:port`,
		good + "--log-format xml":                                 "want text or json",
	} {
		var out bytes.Buffer
		err := run(context.Background(), strings.Fields(args), &out, &out)
		var usage *cli.UsageError
		if !errors.As(err, &usage) || strings.Count(err.Error(), want) != 1 {
			t.Errorf("%s: %v, want one %q", args, err, want)
		}
	}
}

func TestListenAddress(t *testing.T) {
	for s, want := range map[string]string{
		"240.0.10.1":            "240.0.10.1:443",
		"240.0.10.1:6443":       "240.0.10.1:6443",
		"::ffff:240.0.10.1":     "240.0.10.1:443",
		"64:ff9b:1::1":          "[64:ff9b:1::1]:443",
		"[64:ff9b:1::1]":        "[64:ff9b:1::1]:443",
		"[64:ff9b:1::1]:6443":   "[64:ff9b:1::1]:6443",
		"[::ffff:240.0.0.1]:80": "240.0.0.1:80",
	} {
		if got, err := parseListen(s); got.String() != want || err != nil {
			t.Errorf("%s: %v, %v, want %s", s, got, err, want)
		}
	}
}

// TestPortZero takes any port where the address is not the program's.
func TestPortZero(t *testing.T) {
	var out bytes.Buffer
	o, err := parse(strings.Fields("--interface none --listen-address 127.0.0.1:0 --entrypoint h:1"), &out)
	if err != nil || o.listen.String() != "127.0.0.1:0" {
		t.Errorf("got %+v, %v", o, err)
	}
}

func TestDrainTimeout(t *testing.T) {
	for s, want := range map[string]time.Duration{"": 25 * time.Second, "0": 1, "0s": 1, "1m": time.Minute, "-1s": -time.Second} {
		args := []string{"--listen-address", "240.0.10.1", "--entrypoint", "h:1"}
		if s != "" {
			args = append(args, "--drain-timeout", s)
		}
		var out bytes.Buffer
		o, err := parse(args, &out)
		if err != nil {
			t.Errorf("%q: %v", s, err)
			continue
		}
		if got := newProgram(o, o.log.Logger(&out)).interceptor.DrainTimeout; got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}

func TestHelp(t *testing.T) {
	var out, logs bytes.Buffer
	if err := run(context.Background(), []string{"-h"}, &out, &logs); !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	for _, want := range []string{
		"apiserver-proxy runs on each node", "kube-proxy ─►", "apiserver-proxy --listen-address 240.0.10.1",
		"--listen-address IP[:PORT]", "--header 'NAME: VALUE'", "--dialect proxy|connect", "(default proxy)", "(default 25s)",
		"SIGTERM; 0 means not at all, negative for ever",
	} {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), want) {
			t.Errorf("the help has no %q", want)
		}
	}
	if logs.Len() > 0 {
		t.Errorf("standard error: %s", &logs)
	}
}

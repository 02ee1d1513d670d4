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
	pair := "--cert c --key k "
	good := pair + "--server https://h:1 "
	for args, want := range map[string]string{
		"--foo":                            "not defined: --foo",
		"extra":                            `unexpected argument "extra"`,
		"--server h:1":                     `--server "h:1": want https://host:port`,
		"--server https://":                "want https://host:port",
		"--allow 10.0.0.0/33":              "--allow",
		"--allow 10.0.0.0/8:0":             "port",
		"--label a":                        "want KEY=VALUE",
		"--serves=":                        `--serves "": it is empty`,
		"--via-header x":                   "want 'Name: value'",
		"--via-header a\x01:b":             "want 'Name: value'",
		pair:                               "--server or --listen is missing",
		"--server https://h:1":             "--cert and --key, or --token-file, are missing",
		"--server https://h:1 --cert c":    "--cert needs --key",
		"--server https://h:1 --key k":     "--key needs --cert",
		"--listen :1 --ca f":               "--listen needs --cert and --key",
		pair + "--listen :1":               "--listen needs --ca",
		pair + "--listen x --ca f":         `--listen "x": want host:port`,
		good + "--admin-listen x":          `--admin-listen "x": want host:port`,
		good + "--via-header a:b":          "--via-header needs --via",
		good + "--via ftp://h":             `--via "ftp://h"`,
		good + "--via http://u:hidden@h:x": "--via: want http[s]://",
		good + "--cluster *":               `--cluster "*"`,
		good + "--log-format xml":          "want text or json",
	} {
		var out bytes.Buffer
		err := run(context.Background(), strings.Fields(args), &out, &out)
		var usage *cli.UsageError
		if !errors.As(err, &usage) || strings.Count(err.Error(), want) != 1 || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: %v, want one %q", args, err, want)
		}
	}
}

func TestBadFiles(t *testing.T) {
	args := "--server https://h:1 --cert /none/c --key /none/k --ca /none/1 --token-file /none/2"
	err := run(context.Background(), strings.Fields(args), &bytes.Buffer{}, &bytes.Buffer{})
	var usage *cli.UsageError
	if err == nil || errors.As(err, &usage) {
		t.Fatalf("got %v", err)
	}
	for _, file := range []string{"/none/c", "/none/1", "/none/2"} {
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
		"proxy-agent is the shoot's end", "◄──── session", "proxy-agent --server https://",
		"--server URL", "--via-header 'NAME: VALUE'", "--allow RULE", "--drain-timeout DURATION", "(default 25s)",
	} {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), want) {
			t.Errorf("the help has no %q", want)
		}
	}
	if logs.Len() > 0 {
		t.Errorf("standard error: %s", &logs)
	}
}

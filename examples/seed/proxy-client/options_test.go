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
	door := "--listen 127.0.0.1:1 "
	https := "--proxy https://h:1 "
	good := door + https
	for args, want := range map[string]string{
		"--foo":                                   "not defined: --foo",
		"extra":                                   `unexpected argument "extra"`,
		"--listen x":                              `--listen "x": want host:port`,
		"--listen unix:p":                         "not absolute",
		"--listen unix:@p":                        "not absolute",
		"--forward :1":                            `--forward ":1": want LISTEN=TARGET`,
		"--forward x=h:1":                         "want LISTEN=TARGET: want host:port",
		"--forward unix:p=h:1":                    "not absolute",
		"--forward 127.0.0.1:1=h":                 `the target is no host:port: "h"`,
		"--forward 127.0.0.1:1=h:0":               `the target is no host:port: "h:0"`,
		"--forward 127.0.0.1:1=":                  `the target is no host:port: ""`,
		https + "--listen :1":                     `--listen ":1": this is no loopback address`,
		https + "--listen 0.0.0.0:1":              "this is no loopback address",
		https + "--listen [::]:1":                 "this is no loopback address",
		https + "--listen 10.0.0.1:1":             "this is no loopback address",
		https + "--listen node:1":                 "this is no loopback address",
		https + "--forward :1=h:2":                `--forward ":1=h:2": this is no loopback address`,
		https:                                     "--listen or --forward is missing",
		door:                                      "--egress-config or --proxy is missing",
		good + "--egress-config f":                "exclude each other",
		good + "--selection etcd":                 "--selection is for --egress-config",
		good + "--cert c":                         "--cert needs --key",
		good + "--key k":                          "--key needs --cert",
		good + "--header x":                       "want 'Name: value'",
		good + "--max-connections 0":              "--max-connections 0: want 1 or more",
		good + "--max-connections x":              `invalid value "x" for flag --max-connections`,
		good + "--dial-timeout 0s":                "--dial-timeout 0s: want more than 0",
		good + "--admin-listen x":                 `--admin-listen "x": want host:port`,
		good + "--log-format xml":                 "want text or json",
		door + "--egress-config f --ca c":         "are for --proxy, and there is none",
		door + "--egress-config f --header a:b":   "are for --proxy, and there is none",
		door + "--egress-config f --selection x":  `--selection "x": want cluster, controlplane or etcd`,
		door + "--proxy ftp://h":                  `--proxy "ftp://h"`,
		door + "--proxy http://u:hidden@h:x":      "--proxy: want http[s]://",
		door + "--proxy http://u:hidden@h --ca c": "are for a --proxy with https://",
		door + "--proxy http+unix:///p --ca c":    "are for a --proxy with https://",
	} {
		var out bytes.Buffer
		err := run(context.Background(), strings.Fields(args), &out, &out)
		var usage *cli.UsageError
		if !errors.As(err, &usage) || strings.Count(err.Error(), want) != 1 || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: %v, want one %q", args, err, want)
		}
		if out.Len() > 0 {
			t.Errorf("%s: wrote %q", args, &out)
		}
	}
}

func TestGoodFlags(t *testing.T) {
	for args, want := range map[string]string{
		"--listen 127.0.0.1:1":                    "tcp 127.0.0.1:1",
		"--listen 127.9.9.9:1":                    "tcp 127.9.9.9:1",
		"--listen [::1]:1":                        "tcp [::1]:1",
		"--listen [::ffff:127.0.0.1]:1":           "tcp [::ffff:127.0.0.1]:1",
		"--listen localhost:1":                    "tcp localhost:1",
		"--listen unix:/p":                        "unix /p",
		"--listen :1 --allow-remote":              "tcp :1",
		"--forward unix:/a=b/s=h:2":               "unix /a=b/s to h:2",
		"--forward 127.0.0.1:1=[2001:db8::1]:443": "tcp 127.0.0.1:1 to [2001:db8::1]:443",
	} {
		o, err := parse(append(strings.Fields(args), "--egress-config", "f"), nil)
		if err != nil {
			t.Errorf("%s: %v", args, err)
			continue
		}
		var got []string
		for _, at := range o.listen {
			got = append(got, at.network+" "+at.address)
		}
		for _, f := range o.forwards {
			got = append(got, f.at.network+" "+f.at.address+" to "+f.target)
		}
		if strings.Join(got, ", ") != want || o.selection != "cluster" {
			t.Errorf("%s: %q of %s, want %q", args, got, o.selection, want)
		}
	}
}

// TestBadFiles is about what is wrong with files and ports, which is no usage
// error.
func TestBadFiles(t *testing.T) {
	via := "--proxy https://h:1 --listen "
	for args, want := range map[string][]string{
		via + "127.0.0.1:0 --cert /none/c --key /none/k --ca /none/1": {"/none/c", "/none/1"},
		"--listen 127.0.0.1:0 --egress-config /none/e":                {"/none/e"},
		via + "unix:/none/s":                                                     {"--listen: "},
		via + "192.0.2.1:1 --allow-remote":                                       {"--listen: ", "192.0.2.1:1"},
		via + "127.0.0.1:0 --forward unix:/none/s=h:1":                           {"--forward unix:/none/s=h:1: "},
		via + "127.0.0.1:0 --admin-listen 192.0.2.1:1":                           {"--admin-listen: "},
		via + "127.0.0.1:0 --forward 127.0.0.1:0=h:1 --admin-listen 192.0.2.1:1": {"--admin-listen: "},
	} {
		err := run(context.Background(), strings.Fields(args), &bytes.Buffer{}, &bytes.Buffer{})
		var usage *cli.UsageError
		if err == nil || errors.As(err, &usage) {
			t.Errorf("%s: %v", args, err)
			continue
		}
		for _, text := range want {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: nothing about %q in %v", args, text, err)
			}
		}
	}
}

func TestHelp(t *testing.T) {
	var out, logs bytes.Buffer
	if err := run(context.Background(), []string{"-h"}, &out, &logs); !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	for _, want := range []string{
		"proxy-client is the sidecar", "with mTLS ──► proxy-server", "proxy-client --listen 127.0.0.1:8136", "open door to the cluster",
		"--listen ADDR", "--forward LISTEN=TARGET", "--egress-config FILE", "--header 'NAME: VALUE'", "(default 1000)", "(default 25s)",
	} {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), want) {
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

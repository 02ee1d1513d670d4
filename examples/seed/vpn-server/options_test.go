package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"strings"
	"testing"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
)

// tapFlags and tunFlags are command lines that are whole.
const (
	tapFlags = "--listen :1 --tls-cert c --tls-key k --client-ca ca --cluster a --peer-addresses p=fd00::/112 "
	tunFlags = "--mode tun --listen :1 --tls-cert c --tls-key k --client-ca ca --cluster a --peer-addresses p=10.0.0.2 " +
		"--peer-networks p=10.1.0.0/16 --address 10.0.0.1/24 "
)

func TestBadFlags(t *testing.T) {
	for args, want := range map[string]string{
		"--foo":                                     "not defined: --foo",
		"extra":                                     `unexpected argument "extra"`,
		"--drain-timeout soon":                      `invalid value "soon" for flag --drain-timeout`,
		"--client-ca *=f":                           `--client-ca "*=f": want [CLUSTER=]FILE`,
		"--connect-client-ca a=":                    "no file",
		"--proxy-from h":                            `--proxy-from "h": want IP or IP/BITS`,
		"--peer-addresses p":                        `--peer-addresses "p": want NAME=CIDR[,CIDR…]`,
		"--peer-addresses =::1":                     "want NAME=CIDR[,CIDR…]",
		"--peer-addresses p=fd00::1/112":            "the network of 112 bits is fd00::/112",
		"--peer-networks p=10.0.0.0/8,":             "want IP or IP/BITS",
		"--address 10.0.0.1":                        "want IP/BITS",
		"--shoot-network 10.0.0.1/8":                "the network of 8 bits is 10.0.0.0/8",
		"--log-level loud":                          `--log-level "loud": want debug, info`,
		"--tls-cert f":                              "--tls-cert needs --tls-key",
		"--mode tap":                                "--tls-cert and --tls-key are missing",
		"--mode tun --listen :1":                    "--client-ca is missing",
		"--cluster a":                               "--listen is missing",
		"--listen :1":                               "--cluster is missing",
		"--client-ca f":                             "--peer-addresses is missing",
		tapFlags + "--cluster *":                    `--cluster "*"`,
		tapFlags + "--listen x":                     `--listen "x": want host:port`,
		tapFlags + "--mode tup":                     `--mode "tup": want tap or tun`,
		tapFlags + "--mtu 1000":                     "--mtu 1000: want 1280 to 65535",
		tapFlags + "--peer-networks q=10.0.0.0/8":   "--peer-networks q: there are no --peer-addresses of q",
		tapFlags + "--device tun0":                  "are for --mode tun",
		tapFlags + "--connect-listen :2":            "are for --mode tun",
		tapFlags + "--admin-listen x":               `--admin-listen "x": want host:port`,
		tapFlags + "--log-format xml":               `--log-format "xml": want text or json`,
		tapFlags + "--mode tun":                     "--mode tun needs --address",
		tunFlags + "--peer-addresses q=10.0.0.0/24": "--peer-addresses q: 10.0.0.1 among them is this server's --address",
		tunFlags + "--shoot-network ::/0":           "this server's own way out",
		tunFlags + "--shoot-network fd01::/64":      "--shoot-network fd01::/64: there is no --address of its kind",
		tunFlags + "--shoot-network 10.2.0.0/16":    "no --peer-networks let it be behind a client",
		tunFlags + "--connect-listen :2":            "--connect-listen needs --connect-client-ca",
		tunFlags + "--connect-listen x":             `--connect-listen "x": want host:port`,
		tunFlags + "--connect-listen :2 --mtu 1":    "--connect-listen needs --shoot-network",
		tunFlags + "--firewall maybe":               `--firewall "maybe": want true or false`,
		tunFlags + "--connect-client-ca f":          "--connect-client-ca is for --connect-listen",
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

func TestGoodFlags(t *testing.T) {
	o, err := parse(strings.Fields(tapFlags+"--peer-addresses CN=x=fd00::1:0/112,fd00::2:1 --peer-networks CN=x=10.0.0.0/8"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := o.peers["CN=x"]; o.mode != packet.TAP || len(o.peers) != 2 || len(p.addresses) != 2 || len(p.networks) != 1 {
		t.Errorf("got %+v", o)
	}
	o, err = parse(strings.Fields(tunFlags+"--shoot-network 10.1.2.0/24 --connect-listen :2 --connect-client-ca f --drain-timeout 0 --firewall=false"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if o.mode != packet.TUN || o.device != "tun0" || o.drainTimeout != 1 || o.firewall {
		t.Errorf("got %+v", o)
	}
}

// TestBadFiles is about what is wrong with files, which is no usage error.
func TestBadFiles(t *testing.T) {
	args := "--listen :0 --tls-cert /none/c --tls-key /none/k --client-ca /none/1 --cluster a --peer-addresses p=10.0.0.2 " +
		"--mode tun --address 10.0.0.1/24 --peer-networks p=10.1.0.0/16 --shoot-network 10.1.0.0/16 --connect-listen :0 --connect-client-ca /none/2"
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
		"vpn-server is the seed's end", "kube-apiserver ─ CONNECT ─►", "vpn-server --listen :9444",
		"--listen ADDR\n", "--peer-addresses NAME=CIDR[,CIDR…]", "(default tap)", "(default 1s)", "(default true)", "(repeatable)",
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

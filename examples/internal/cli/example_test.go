package cli_test

import (
	"fmt"
	"os"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
)

func ExampleFlags() {
	addr, timeout, peers := "", 25*time.Second, []string(nil)
	flags := cli.NewFlags("greeter", `
greeter says hello.

  greeter --listen :80
`)
	flags.Section("Clients")
	flags.Text(&addr, "listen", "ADDR", "where clients come in")
	flags.Duration(&timeout, "drain-timeout", "how long they may stay")
	flags.Texts(&peers, "peer", "ID", "another greeter")

	fmt.Println(flags.Parse([]string{"--listen", ":80", "--peer", "a", "--peer", "b"}, os.Stdout), addr, timeout, peers)
	fmt.Println(flags.Parse([]string{"--liste"}, os.Stdout))
	fmt.Println(flags.Parse([]string{"-h"}, os.Stdout))
	// Output:
	// <nil> :80 25s [a b]
	// flag provided but not defined: --liste
	// greeter says hello.
	//
	//   greeter --listen :80
	//
	// Clients:
	//   --listen ADDR
	//         where clients come in
	//   --drain-timeout DURATION
	//         how long they may stay (default 25s)
	//   --peer ID
	//         another greeter (repeatable)
	// flag: help requested
}

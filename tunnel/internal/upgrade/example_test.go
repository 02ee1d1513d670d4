package upgrade_test

import (
	"fmt"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/internal/upgrade"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// Both ends of an upgrade.
func ExampleProtocol() {
	p := upgrade.Protocol{Path: "/v1/chat", Token: "chat/1", For: "chats"}
	client, server := tunneltest.Pipe()
	defer client.Close()
	go func() {
		defer server.Close()
		r, err := connect.ReadRequest(server, nil)
		if err == nil && p.Check(r) == nil && p.Switch(server) == nil {
			fmt.Fprint(server, "welcome")
		}
	}()
	_, err := p.Request(client, &connect.Request{Host: "chat.example"}, nil)
	fmt.Println(err)
	// Output: <nil>
}

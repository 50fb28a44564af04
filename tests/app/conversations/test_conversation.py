from app.conversations.conversation import Conversation, Turn


def talk() -> tuple[Conversation, Turn, Turn]:
    chat = Conversation(system="Be kind.")
    question = chat.add(Turn("user", "one"))
    reply = chat.add(Turn("assistant", "first", parent=question.id))
    return chat, question, reply


def test_a_new_version_stands_beside_the_old_one() -> None:
    chat, question, reply = talk()
    other = chat.add(Turn("assistant", "second", parent=question.id))
    assert [turn.content for turn in chat.path()] == ["one", "second"]
    assert chat.versions(other.id) == (2, 2)
    chat.switch(other.id, -1)
    assert chat.path()[-1] is reply
    assert chat.switch(reply.id, -1) == reply.id


def test_an_edited_question_begins_a_branch_of_its_own() -> None:
    chat, question, _ = talk()
    edited = chat.add(Turn("user", "one, but better", parent=question.parent))
    assert chat.path() == [edited]
    chat.switch(edited.id, -1)
    assert len(chat.path()) == 2


def test_messages_follow_the_branch_of_the_turn_and_begin_with_the_system_prompt() -> None:
    chat, question, reply = talk()
    chat.add(Turn("user", "elsewhere", parent=question.parent))
    messages = chat.messages(reply.id)
    assert [(message.role, message.content) for message in messages] == [
        ("system", "Be kind."),
        ("user", "one"),
        ("assistant", "first"),
    ]


def test_choosing_a_turn_opens_the_path_through_it() -> None:
    chat, question, reply = talk()
    chat.add(Turn("user", "elsewhere"))
    chat.choose(reply.id)
    assert chat.path() == [question, reply]
